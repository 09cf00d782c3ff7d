"""Run LiteRT models of Keras models."""

import warnings


def litert_output(model, xs, folder):
    """Return the output of the LiteRT model of a Keras model with known sizes, for one array per input.

    The inputs must have different shapes.
    """
    import tensorflow as tf

    file = str(folder / "model.tflite")   # Keras 3.13 takes no Path here
    model.export(file, format="litert", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)   # a deprecation
        interpreter = tf.lite.Interpreter(file)
    interpreter.allocate_tensors()
    for x in xs:
        (index,) = (d["index"] for d in interpreter.get_input_details() if tuple(d["shape"]) == x.shape)
        interpreter.set_tensor(index, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
