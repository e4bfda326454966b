"""What the families on pixels share: flow matching towards the clean image, its sampler, and no tokenizer."""
