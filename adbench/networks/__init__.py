"""Encoders, decoders, critics: plain `nn.Module`s, which know neither a loss nor a trainer."""
