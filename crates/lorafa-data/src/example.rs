//! One example: ids and labels, made of a record.

use std::ops::Range;

use tokenizers::Encoding;

use crate::error::{DataErrorKind, RecordError};
use crate::form::{Ids, Label, Record};
use crate::spec::{Layout, Task};
use crate::tokenizer::Tokenizer;

/// The label that no loss counts.
pub(crate) const IGNORED: i64 = -100;

/// Token ids without padding, cut to the sequence, and what trains of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) ids: Box<[u32]>,
    /// Token types; zeros if `None`.
    pub(crate) types: Option<Box<[u8]>>,
    pub(crate) labels: Labels,
    /// Rows of the inputs that only files hold, in the order of [`Layout::fixed`].
    pub(crate) fixed: Box<[Box<[i64]>]>,
    /// Tokens that did not fit.
    pub(crate) lost: u32,
}

/// The labels of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Labels {
    /// The ids themselves in these ranges, which ascend and do not touch; ignored elsewhere.
    Spans(Box<[Range<u32>]>),
    /// A label a token, of the ids or of a target sequence.
    Tokens(Box<[i32]>),
    /// The class of the whole.
    Class(i32),
}

impl Example {
    /// The labels one by one.
    pub(crate) fn labels(&self) -> Vec<i64> {
        match &self.labels {
            Labels::Class(label) => vec![i64::from(*label)],
            Labels::Tokens(labels) => labels.iter().map(|label| i64::from(*label)).collect(),
            Labels::Spans(spans) => {
                let mut labels = vec![IGNORED; self.ids.len()];
                for span in spans {
                    let span = span.start as usize..span.end as usize;
                    for (label, id) in labels[span.clone()].iter_mut().zip(&self.ids[span]) {
                        *label = i64::from(*id);
                    }
                }
                labels
            }
        }
    }

    /// Labels that count in the loss: for causal-lm the first never does, because nothing predicts it.
    pub(crate) fn trained(&self, task: Task) -> u64 {
        let count = |labels: &[i32]| {
            labels
                .iter()
                .filter(|label| **label != IGNORED as i32)
                .count() as u64
        };
        let first = usize::from(task == Task::CausalLm);
        match &self.labels {
            Labels::Class(label) => count(&[*label]),
            Labels::Tokens(labels) => count(labels.get(first..).unwrap_or_default()),
            Labels::Spans(spans) => {
                let length = |span: &Range<u32>| {
                    u64::from(span.end.saturating_sub(span.start.max(first as u32)))
                };
                spans.iter().map(length).sum()
            }
        }
    }

    /// Tokens, those of a target included.
    pub(crate) fn tokens(&self, task: Task) -> u64 {
        let target = match (task, &self.labels) {
            (Task::Seq2Seq, Labels::Tokens(labels)) => labels.len(),
            _ => 0,
        };
        (self.ids.len() + target) as u64
    }
}

/// Makes examples of records.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
}

impl Builder<'_> {
    /// The example of a record. It may have no tokens, and no label that trains.
    pub(crate) fn build(&self, record: Record) -> Result<Example, DataErrorKind> {
        match record {
            Record::Ids(ids) => self.pretokenized(ids),
            Record::Class { text, pair, label } => self.class(&text, pair.as_deref(), label),
            Record::Completion { prompt, completion } if self.layout.task == Task::Seq2Seq => {
                self.target(&prompt, &completion)
            }
            Record::Completion { prompt, completion } => {
                let start = prompt.len();
                let text = prompt + &self.tokenizer()?.ended(completion);
                let trained = start..text.len();
                self.causal(&text, true, &[trained])
            }
            Record::Text(text) => {
                let text = self.tokenizer()?.ended(text);
                let trained = 0..text.len();
                self.causal(&text, true, &[trained])
            }
            Record::Chat {
                messages,
                tools,
                prompt,
            } => {
                let template = self.tokenizer()?.template()?;
                let rendered = template.render_trained(&messages, tools.as_ref(), prompt)?;
                self.causal(&rendered.text, false, &rendered.trained)
            }
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer, RecordError> {
        self.tokenizer.ok_or(RecordError::NeedsTokenizer)
    }

    fn causal(
        &self,
        text: &str,
        special: bool,
        trained: &[Range<usize>],
    ) -> Result<Example, DataErrorKind> {
        let tokenizer = self.tokenizer()?;
        let encoding = tokenizer.encoding(text, special)?;
        let doubled = tokenizer.bos.as_ref().is_some_and(|bos| {
            let starts = encoding.get_ids().starts_with(&[bos.id, bos.id]);
            starts && encoding.get_special_tokens_mask().first() == Some(&1)
        });
        let first = usize::from(doubled);
        let spans = token_spans(&encoding, text.len(), trained, first, self.layout.seq);
        let ids = &encoding.get_ids()[first..];
        let kept = ids.len().min(self.layout.seq);
        Ok(Example {
            ids: ids[..kept].into(),
            types: None,
            labels: Labels::Spans(spans),
            fixed: Box::default(),
            lost: (ids.len() - kept) as u32,
        })
    }

    fn class(
        &self,
        text: &str,
        pair: Option<&str>,
        label: Label,
    ) -> Result<Example, DataErrorKind> {
        let tokenizer = self.tokenizer()?;
        let label = match label {
            Label::Number(label) => label,
            Label::Name(name) => tokenizer.label_id(&name)?,
        };
        let (encoding, lost) = tokenizer.encode_within(text, pair, self.layout.seq)?;
        Ok(Example {
            ids: encoding.get_ids().into(),
            types: types(&encoding)?,
            labels: Labels::Class(self.class_label(label)?),
            fixed: Box::default(),
            lost: lost as u32,
        })
    }

    fn target(&self, source: &str, target: &str) -> Result<Example, DataErrorKind> {
        let tokenizer = self.tokenizer()?;
        let (source, lost) = tokenizer.encode_within(source, None, self.layout.seq)?;
        let (target, more) = tokenizer.encode_within(target, None, self.layout.target)?;
        Ok(Example {
            ids: source.get_ids().into(),
            types: types(&source)?,
            labels: Labels::Tokens(target.get_ids().iter().map(|id| *id as i32).collect()),
            fixed: Box::default(),
            lost: (lost + more) as u32,
        })
    }

    fn pretokenized(&self, record: Ids) -> Result<Example, DataErrorKind> {
        let Layout { task, seq, .. } = *self.layout;
        let length = record.ids.len();
        let aligned = matches!(task, Task::CausalLm | Task::TokenCls);
        let of_tokens = |key, values: &Option<Vec<i64>>| match values {
            Some(values) if values.len() != length => Err(RecordError::Length {
                key,
                found: values.len(),
                expected: length,
            }),
            _ => Ok(()),
        };
        of_tokens("attention_mask", &record.mask)?;
        of_tokens("token_type_ids", &record.types)?;
        if aligned {
            of_tokens("labels", &record.labels)?;
        }
        let kept = unmasked(record.mask.as_deref(), length)?;
        if kept.start > 0
            && let Some((name, _)) = self.layout.fixed.first()
        {
            return Err(RecordError::PaddedLeft(name.clone()).into());
        }
        let ids = &record.ids[kept.clone()];
        for id in ids {
            self.token_id(*id)?;
        }
        let fitting = ids.len().min(seq);
        let mut lost = ids.len() - fitting;
        let ids: Box<[u32]> = ids[..fitting].iter().map(|id| *id as u32).collect();
        let types = match &record.types {
            Some(types) => Some(token_types(&types[kept.clone()][..fitting])?),
            None => None,
        };
        let labels = match (task, record.labels) {
            (Task::CausalLm, None) => Labels::Spans(ranges((0..fitting).map(|_| true))),
            (_, None) => return Err(RecordError::NoLabels(task).into()),
            (Task::SeqCls, Some(labels)) => match labels[..] {
                [label] => Labels::Class(self.class_label(label)?),
                _ => {
                    return Err(RecordError::Length {
                        key: "labels",
                        found: labels.len(),
                        expected: 1,
                    }
                    .into());
                }
            },
            (Task::CausalLm, Some(labels)) => self.causal_labels(&ids, &labels[kept][..fitting])?,
            (Task::TokenCls, Some(labels)) => {
                let labels = labels[kept][..fitting].iter();
                Labels::Tokens(
                    labels
                        .map(|label| self.class_label(*label))
                        .collect::<Result<_, _>>()?,
                )
            }
            (Task::Seq2Seq, Some(labels)) => {
                let end = labels
                    .iter()
                    .rposition(|label| *label != IGNORED)
                    .map_or(0, |last| last + 1);
                let fitting = end.min(self.layout.target);
                lost += end - fitting;
                Labels::Tokens(self.target_labels(&labels[..fitting])?)
            }
        };
        Ok(Example {
            ids,
            types,
            labels,
            fixed: record.fixed.into(),
            lost: lost as u32,
        })
    }

    fn token_id(&self, id: i64) -> Result<(), RecordError> {
        let vocab = self.layout.ids();
        if u64::try_from(id).is_ok_and(|id| id < vocab) {
            return Ok(());
        }
        Err(RecordError::TokenId { id, vocab })
    }

    fn class_label(&self, label: i64) -> Result<i32, RecordError> {
        let classes = self.layout.classes.unwrap_or(1 << 31).min(1 << 31);
        if label == IGNORED || u64::try_from(label).is_ok_and(|label| label < classes) {
            return Ok(label as i32);
        }
        Err(RecordError::Label { label, classes })
    }

    fn target_labels(&self, labels: &[i64]) -> Result<Box<[i32]>, RecordError> {
        let check = |label: &i64| {
            if *label != IGNORED {
                self.token_id(*label)?;
            }
            Ok(*label as i32)
        };
        labels.iter().map(check).collect()
    }

    fn causal_labels(&self, ids: &[u32], labels: &[i64]) -> Result<Labels, RecordError> {
        let plain = ids
            .iter()
            .zip(labels)
            .all(|(id, label)| *label == IGNORED || *label == i64::from(*id));
        if !plain {
            return Ok(Labels::Tokens(self.target_labels(labels)?));
        }
        let trained = labels.iter().map(|label| *label != IGNORED);
        Ok(Labels::Spans(ranges(trained)))
    }
}

/// The range of ones in a mask.
fn unmasked(mask: Option<&[i64]>, length: usize) -> Result<Range<usize>, RecordError> {
    let Some(mask) = mask else {
        return Ok(0..length);
    };
    let start = mask.iter().position(|value| *value != 0).unwrap_or(length);
    let end = mask
        .iter()
        .rposition(|value| *value != 0)
        .map_or(length, |last| last + 1);
    if mask[start..end].iter().any(|value| *value != 1) {
        return Err(RecordError::Mask);
    }
    Ok(start..end)
}

/// Token types, `None` if all are 0.
fn types(encoding: &Encoding) -> Result<Option<Box<[u8]>>, RecordError> {
    let types = encoding.get_type_ids();
    if types.iter().all(|value| *value == 0) {
        return Ok(None);
    }
    let types: Vec<i64> = types.iter().map(|value| i64::from(*value)).collect();
    token_types(&types).map(Some)
}

fn token_types(types: &[i64]) -> Result<Box<[u8]>, RecordError> {
    let check = |value: &i64| u8::try_from(*value).map_err(|_| RecordError::TokenType(*value));
    types.iter().map(check).collect()
}

/// The tokens from `first` on, at most `limit`, that spell any byte of the `trained` ranges, of a text of `length` bytes.
///
/// Tokens that the post-processor adds count as what they stand next to: before the text, or at its end.
fn token_spans(
    encoding: &Encoding,
    length: usize,
    trained: &[Range<usize>],
    first: usize,
    limit: usize,
) -> Box<[Range<u32>]> {
    let special = encoding.get_special_tokens_mask();
    let last = special.iter().rposition(|special| *special == 0);
    let tokens = encoding.get_offsets().iter().zip(special).enumerate();
    let trains = tokens.map(|(index, ((start, end), special))| match *special {
        0 if start < end => trained
            .iter()
            .any(|span| *end > span.start && *start < span.end),
        // White space, which byte-level tokenizers may trim off the offsets, leaving its end.
        0 => trained
            .iter()
            .any(|span| *end > span.start && *end <= span.end),
        _ if last.is_none_or(|last| index > last) => trained.iter().any(|span| span.end == length),
        _ => trained.iter().any(|span| span.start == 0),
    });
    ranges(trains.skip(first).take(limit))
}

/// The ranges of indices where `flags` holds.
fn ranges(flags: impl Iterator<Item = bool>) -> Box<[Range<u32>]> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for (index, flag) in flags.enumerate() {
        let index = index as u32;
        match ranges.last_mut() {
            Some(range) if flag && range.end == index => range.end = index + 1,
            _ if flag => ranges.push(index..index + 1),
            _ => {}
        }
    }
    ranges.into()
}
