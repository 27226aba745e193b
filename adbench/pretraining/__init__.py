"""Ways to start a method's encoders. Each is one function of (encoder, images, options): same architecture out as in.

A method takes part by showing its encoders, and may say what happens to them afterwards:

    def encoders(self) -> dict[str, PretrainableEncoder]     # see adbench.networks.encoder
    def on_pretrained(self) -> None                          # optional: e.g. freeze the trunk

A pretraining is a class whose constructor takes the options of `conf/pretraining/<name>.yaml`:

    pretraining.check(method)                                # UserError at composition, before any data is read
    pretraining(method, datamodule, cache_dir=..., seed=..., max_batches=...)   # fills the encoders in place

`Trained` (in `base`) gives those that learn from images a shared cache: a result lies in `cache_dir/pretraining` under
a key of encoder, data, options and seed, is written whole, and is made once by whichever job comes first. Long ones
leave a partial file that the next start continues. Only training rows, without known anomalies, are seen.

    none           nothing
    imagenet       published weights, strictly            `imagenet.ImageNet`
    imagenet_kd    distillation of a published teacher    `imagenet.Distillation`
    simclr         contrastive, on the training images    `simclr.SimCLR`
    autoencoder    reconstruction of the training images  `autoencoder.Autoencoder`
"""
