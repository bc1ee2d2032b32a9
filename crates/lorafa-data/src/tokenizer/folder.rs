//! The files next to a `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::read as read_file;
use crate::error::{DataError, FileError, TokenizerError};

/// What they say.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// `bos_token` and the like, with the file that says so.
    pub(super) special: BTreeMap<String, (String, PathBuf)>,
    /// The chat template, with its file.
    pub(super) template: Option<(String, PathBuf)>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
    pub(super) label_ids: Option<BTreeMap<String, i64>>,
    pub(super) decoder_start: Option<u32>,
}

/// The special tokens that have a name of their own.
const SPECIAL: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

#[derive(Deserialize)]
struct Config {
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Templates>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Many(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

#[derive(Deserialize)]
struct ModelConfig {
    label2id: Option<BTreeMap<String, i64>>,
    decoder_start_token_id: Option<u32>,
}

pub(super) fn read(tokenizer: &Path) -> Result<Folder, DataError> {
    let mut folder = Folder::default();
    let config = tokenizer.with_file_name("tokenizer_config.json");
    if let Some(Config {
        add_bos_token,
        add_eos_token,
        chat_template,
        rest,
    }) = json(&config)?
    {
        folder.add_bos = add_bos_token;
        folder.add_eos = add_eos_token;
        folder.special(&config, &rest)?;
        if let Some(templates) = chat_template {
            let template = templates.choose();
            let template = template.map_err(|error| DataError::of_file(&config, error))?;
            folder.template = Some((template, config));
        }
    }
    let map = tokenizer.with_file_name("special_tokens_map.json");
    if let Some(tokens) = json(&map)? {
        folder.special(&map, &tokens)?;
    }
    let jinja = tokenizer.with_file_name("chat_template.jinja");
    if let Some(bytes) = bytes(&jinja)? {
        let text = String::from_utf8(bytes).map_err(|error| {
            DataError::of_file(&jinja, TokenizerError::Template(error.to_string()))
        })?;
        folder.template = Some((text, jinja));
    }
    if let Some(model) = json::<ModelConfig>(&model_config(tokenizer))? {
        folder.label_ids = model.label2id;
        folder.decoder_start = model.decoder_start_token_id;
    }
    Ok(folder)
}

/// The model's configuration that belongs to a tokenizer.
pub(super) fn model_config(tokenizer: &Path) -> PathBuf {
    tokenizer.with_file_name("config.json")
}

impl Folder {
    /// Takes the special tokens of a file; those that an earlier file named stay.
    fn special(&mut self, file: &Path, tokens: &Map<String, Value>) -> Result<(), DataError> {
        for key in SPECIAL {
            let Some(value) = tokens.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            let token = match Token::deserialize(value) {
                Ok(Token::Text(text) | Token::Added { content: text }) => text,
                Err(error) => return Err(DataError::of_file(file, TokenizerError::Json(error))),
            };
            self.special
                .entry(key.to_owned())
                .or_insert((token, file.to_owned()));
        }
        Ok(())
    }
}

impl Templates {
    fn choose(self) -> Result<String, TokenizerError> {
        match self {
            Templates::One(template) => Ok(template),
            Templates::Many(named) => {
                let names = named.iter().map(|named| named.name.clone()).collect();
                let default = named.into_iter().find(|named| named.name == "default");
                default
                    .map(|named| named.template)
                    .ok_or(TokenizerError::NoDefaultTemplate { names })
            }
        }
    }
}

fn bytes(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    match read_file(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(FileError::NotFound) => Ok(None),
        Err(error) => Err(DataError::of_file(path, error)),
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DataError> {
    let Some(bytes) = bytes(path)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes);
    value
        .map(Some)
        .map_err(|error| DataError::of_file(path, TokenizerError::Json(error)))
}
