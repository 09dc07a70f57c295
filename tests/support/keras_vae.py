"""A VAE in Keras, trained for an epoch and written as ONNX by tf2onnx, for the Python that has these.

    python keras_vae.py FOLDER

FOLDER holds x.npy, digits [n, 8, 8, 1] in black and white, and eps.npy [n, 3]. Written are encoder.onnx, decoder.onnx,
and elbo.npy, the ELBO of each as Keras computes it. The encoder draws z too, as Keras's own example does.
"""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers


class Sampling(layers.Layer):  # type: ignore[misc]
    """A draw of z, of mean and log variance."""

    def call(self, inputs: Any) -> Any:
        """See the class."""
        mean, log_var = inputs
        return mean + tf.exp(0.5 * log_var) * tf.random.normal(tf.shape(mean))


def networks() -> tuple[Any, Any]:
    """Encoder and decoder of Keras's example, small."""
    x = keras.Input((8, 8, 1))
    h = layers.Conv2D(16, 3, activation="relu", strides=2, padding="same")(x)
    h = layers.Dense(16, activation="relu")(layers.Flatten()(h))
    mean, log_var = layers.Dense(3, name="z_mean")(h), layers.Dense(3, name="z_log_var")(h)
    encoder = keras.Model(x, [mean, log_var, Sampling(name="z")([mean, log_var])], name="encoder")
    z = keras.Input((3,))
    h = layers.Reshape((4, 4, 16))(layers.Dense(256, activation="relu")(z))
    h = layers.BatchNormalization()(h)
    h = layers.Conv2DTranspose(16, 3, activation="relu", strides=2, padding="same")(h)
    return encoder, keras.Model(z, layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(h))


def main(folder: Path) -> None:
    """Train, write, and measure."""
    keras.utils.set_random_seed(0)
    x, eps = np.load(folder / "x.npy"), np.load(folder / "eps.npy")
    encoder, decoder = networks()
    optimiser = keras.optimizers.Adam(1e-3)
    for batch in np.split(x, 4):
        with tf.GradientTape() as tape:
            mean, log_var, z = encoder(batch, training=True)
            cross = tf.reduce_sum(keras.losses.binary_crossentropy(batch, decoder(z, training=True)), axis=(1, 2))
            kl = tf.reduce_sum(-0.5 * (1 + log_var - tf.square(mean) - tf.exp(log_var)), axis=1)
            loss = tf.reduce_mean(cross + kl)
        weights = encoder.trainable_weights + decoder.trainable_weights
        optimiser.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    for name, model in (("encoder", encoder), ("decoder", decoder)):
        spec = (tf.TensorSpec(model.input_shape, tf.float32, name=f"in_{name}"),)
        tf2onnx.convert.from_keras(model, input_signature=spec, opset=17, output_path=str(folder / f"{name}.onnx"))
    mean, log_var, _ = encoder.predict(x, verbose=0)
    theta = decoder.predict(mean + np.exp(0.5 * log_var) * eps, verbose=0).astype(np.float64)
    log_prob = (x * np.log(theta) + (1 - x) * np.log1p(-theta)).sum(axis=(1, 2, 3))
    np.save(folder / "elbo.npy", log_prob + 0.5 * (1 + log_var - mean**2 - np.exp(log_var)).sum(axis=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
