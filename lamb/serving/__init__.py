"""The rooms behind `lamb.serving.server`: decoding in processes that may die, batches of many clients, the gate."""
