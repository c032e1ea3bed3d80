"""The paper and its kin: what is matched, as functions of tensors alone."""
