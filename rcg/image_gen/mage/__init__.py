"""MAGE: representation → tokens, by a masked token transformer and MaskGIT's parallel decoding."""
