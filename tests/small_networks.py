"""Settings of the smallest any-depth networks that tests train."""

# An any-depth RT-DETR of about 30,000 parameters: every part is there, each as small as its checks allow.
SMALL_DETECTOR: dict[str, object] = {
    "widths": [8, 8, 8, 8],
    "blocks": [2, 2, 2, 2],
    "hidden_dim": 16,
    "neck_ffn_dim": 16,
    "decoder_dim": 16,
    "decoder_ffn_dim": 16,
    "heads": 2,
    "decoder_layers": 2,
    "minimal_decoder_layers": 1,
    "num_queries": 10,
    "denoising_queries": 4,
    "input_size": [64, 64],
}

# A network of the YOLO family that is as small.
SMALL_YOLO: dict[str, object] = {
    "widths": [8, 8, 16, 64, 64],
    "backbone_units": [1, 2, 2, 1],
    "neck_units": [1, 1, 1, 2],
    "input_size": [64, 64],
}
