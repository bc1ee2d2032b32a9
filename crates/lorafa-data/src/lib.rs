//! Training data: text and token ids in, batches of a step's inputs out.
