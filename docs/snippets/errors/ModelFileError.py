import bridge

bridge.load("no_such_model.onnx")
