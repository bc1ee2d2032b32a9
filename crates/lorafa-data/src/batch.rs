//! Batches: rows of examples as tensors of the shapes that the step has.

use std::collections::BTreeMap;

use crate::dataset::Dataset;
use crate::error::{DataError, UseError};
use crate::example::{Example, IGNORED, Labels};
use crate::spec::DECODER_INPUT_IDS;

/// The inputs of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Every input of the [`Spec`](crate::Spec), row-major, with exactly as many elements as its shape has.
    pub inputs: BTreeMap<String, Vec<i64>>,
    /// Labels that count in the loss. For causal-lm those are the labels from the second position on that are not -100,
    /// because the loss compares each label with the logits before it; for the other tasks all that are not -100.
    pub trained_tokens: u64,
    /// Tokens that are not padding, of the rows asked for; targets of seq2seq included.
    pub tokens: u64,
}

/// A row before it is part of a batch.
struct Row {
    ids: Vec<i64>,
    types: Vec<i64>,
    positions: Vec<i64>,
    labels: Vec<i64>,
}

impl Dataset {
    /// The batch of these rows, at most as many as the step has; `rows` may repeat.
    ///
    /// Rows are padded on the right: ids with the padding token, the attention mask with 0, labels with -100, token types
    /// with 0. Positions count the tokens of each example, and padding repeats the last. A batch with fewer rows than the
    /// step has is filled up with copies of its last row whose labels are all -100, so that they weigh nothing.
    ///
    /// # Errors
    ///
    /// If a row does not exist, or if there are none or too many.
    pub fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let layout = &self.layout;
        if rows.is_empty() || rows.len() > layout.batch {
            return Err(UseError::BatchRows {
                batch: layout.batch,
                found: rows.len(),
            }
            .into());
        }
        let mut batch = Batch {
            inputs: BTreeMap::new(),
            trained_tokens: 0,
            tokens: 0,
        };
        for name in &layout.made {
            batch.inputs.insert((*name).to_owned(), Vec::new());
        }
        for (name, _) in &layout.fixed {
            batch.inputs.insert(name.clone(), Vec::new());
        }
        for place in 0..layout.batch {
            let row = rows[place.min(rows.len() - 1)];
            if row >= self.len() {
                let rows = self.len();
                return Err(UseError::Row { row, rows }.into());
            }
            let examples = self.row(row);
            let mut row = self.join(&examples);
            let filler = place >= rows.len();
            if filler {
                row.labels.fill(IGNORED);
            } else {
                batch.trained_tokens += examples
                    .iter()
                    .map(|example| example.trained(layout.task))
                    .sum::<u64>();
                batch.tokens += examples
                    .iter()
                    .map(|example| example.tokens(layout.task))
                    .sum::<u64>();
            }
            for name in &layout.made {
                if let Some(values) = batch.inputs.get_mut(*name) {
                    self.extend(values, name, &row, &examples);
                }
            }
            for (index, (name, _)) in layout.fixed.iter().enumerate() {
                let values = examples
                    .first()
                    .and_then(|example| example.fixed.get(index));
                if let (Some(input), Some(values)) = (batch.inputs.get_mut(name), values) {
                    input.extend_from_slice(values);
                }
            }
        }
        Ok(batch)
    }

    fn join(&self, examples: &[&Example]) -> Row {
        let mut row = Row {
            ids: Vec::new(),
            types: Vec::new(),
            positions: Vec::new(),
            labels: Vec::new(),
        };
        for example in examples {
            row.ids.extend(example.ids.iter().map(|id| i64::from(*id)));
            match &example.types {
                Some(types) => row
                    .types
                    .extend(types.iter().map(|value| i64::from(*value))),
                None => row.types.resize(row.ids.len(), 0),
            }
            row.positions.extend(0..example.ids.len() as i64);
            let first = row.labels.len();
            row.labels.extend(example.labels());
            // The token before it may belong to another example.
            if self.is_packed()
                && let Some(label) = row.labels.get_mut(first)
            {
                *label = IGNORED;
            }
        }
        row
    }

    /// Adds a row to an input, with its padding.
    fn extend(&self, input: &mut Vec<i64>, name: &str, row: &Row, examples: &[&Example]) {
        let (seq, target) = (self.layout.seq, self.layout.target);
        let mut pad = |values: &[i64], padding: i64, length: usize| {
            let end = input.len() + length;
            input.extend_from_slice(values);
            input.resize(end, padding);
        };
        let pad_id = i64::from(self.pad);
        match name {
            "input_ids" => pad(&row.ids, pad_id, seq),
            "attention_mask" => pad(&vec![1; row.ids.len()], 0, seq),
            "token_type_ids" => pad(&row.types, 0, seq),
            "position_ids" => pad(
                &row.positions,
                row.positions.last().copied().unwrap_or(0),
                seq,
            ),
            "labels" => pad(&row.labels, IGNORED, target),
            // Read off the example, whose labels a filler keeps.
            DECODER_INPUT_IDS => {
                let mut ids = vec![i64::from(self.start)];
                ids.extend(examples.iter().flat_map(|example| example.labels()));
                ids.truncate(target);
                for id in &mut ids {
                    if *id == IGNORED {
                        *id = pad_id;
                    }
                }
                pad(&ids, pad_id, target);
            }
            "decoder_attention_mask" => pad(&vec![1; target_length(examples)], 0, target),
            _ => {}
        }
    }
}

fn target_length(examples: &[&Example]) -> usize {
    let length = |example: &&Example| match &example.labels {
        Labels::Tokens(labels) => labels.len(),
        Labels::Spans(_) | Labels::Class(_) => 0,
    };
    examples.iter().map(length).sum()
}
