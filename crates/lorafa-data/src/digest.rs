//! A fingerprint of the rows.

use sha2::{Digest, Sha256};

use crate::dataset::Dataset;
use crate::spec::DECODER_INPUT_IDS;

impl Dataset {
    /// SHA-256 of everything that rows hold, in their order, as 64 hexadecimal digits: ids, labels, token types, verbatim
    /// inputs, and which examples share a row; where `decoder_input_ids` are made, also the start and padding tokens that
    /// they are made with. Other examples, or the same cut, tokenized or split in another way, give another digest; file
    /// names, batch size and the padding of the other inputs do not enter it.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"lorafa rows 1\n");
        hash.update(self.layout.task.name());
        if self.layout.made.contains(&DECODER_INPUT_IDS) {
            number(&mut hash, self.start as usize);
            number(&mut hash, self.pad as usize);
        }
        number(&mut hash, self.len());
        for row in 0..self.len() {
            let examples = self.row(row);
            number(&mut hash, examples.len());
            for example in examples {
                list(&mut hash, example.ids.iter().map(|id| i64::from(*id)));
                list(&mut hash, example.labels().into_iter());
                let types = example.types.as_deref().unwrap_or_default();
                list(&mut hash, types.iter().map(|value| i64::from(*value)));
                number(&mut hash, example.fixed.len());
                for values in &example.fixed {
                    list(&mut hash, values.iter().copied());
                }
            }
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

fn number(hash: &mut Sha256, value: usize) {
    hash.update((value as u64).to_le_bytes());
}

fn list(hash: &mut Sha256, values: impl ExactSizeIterator<Item = i64>) {
    number(hash, values.len());
    for value in values {
        hash.update(value.to_le_bytes());
    }
}
