"""The rooms behind `lamb.server`: decoding in processes that may die, batches of many clients, the gate."""
