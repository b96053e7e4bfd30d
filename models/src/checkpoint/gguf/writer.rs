//! Writes small GGUF files, sound or not, for tests.

/// A file under construction. Keys and tensors are appended as given; nothing is checked.
pub(crate) struct Writer {
    version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
    alignment: usize,
}

struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    /// Where it is said to be, if not where it is.
    offset: Option<u64>,
    data: Vec<u8>,
}

/// A string as GGUF has it: length, bytes.
pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl Writer {
    pub fn new() -> Self {
        Writer {
            version: 3,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        }
    }

    /// The same with another version number.
    pub fn version(self, version: u32) -> Self {
        Writer { version, ..self }
    }

    /// A key with its value's bytes as they are in the file.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let mut bytes = string(key);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        self.keys.push(bytes);
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[value.into()])
    }

    pub fn string(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    pub fn array(self, key: &str, kind: u32, count: usize, elements: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(elements);
        self.raw(key, 9, &bytes)
    }

    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| string(value)).collect();
        self.array(key, 8, values.len(), &elements)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 5, values.len(), &elements)
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 6, values.len(), &elements)
    }

    /// A tensor with GGUF's order of dimensions, placed after the one before.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            kind,
            offset: None,
            data,
        });
        self
    }

    /// A tensor said to be at `offset`.
    pub fn tensor_at(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            kind,
            offset: Some(offset),
            data: Vec::new(),
        });
        self
    }

    /// An F32 tensor.
    pub fn floats(self, name: &str, dims: &[u64], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, dims, 0, data)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.iter().flatten());
        let mut data = Vec::new();
        for Tensor {
            name,
            dims,
            kind,
            offset,
            data: values,
        } in &self.tensors
        {
            bytes.extend(string(name));
            bytes.extend((dims.len() as u32).to_le_bytes());
            bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(values);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(data);
        bytes
    }
}

/// A Llama of one layer with two query heads of four and one key/value head, whose weight `i` of a tensor is `i`.
pub(crate) fn tiny_llama() -> Writer {
    let counting = |count: usize| (0..count).map(|i| i as f32).collect::<Vec<_>>();
    let mut writer = Writer::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 16)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10000.0)
        .strings("tokenizer.ggml.tokens", &["a", "b", "ab"]);
    let tensors: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[8, 3]),
        ("output_norm.weight", &[8]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.attn_v.weight", &[8, 4]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.ffn_gate.weight", &[8, 16]),
        ("blk.0.ffn_up.weight", &[8, 16]),
        ("blk.0.ffn_down.weight", &[16, 8]),
    ];
    for (name, dims) in tensors {
        let count = dims.iter().product::<u64>() as usize;
        writer = writer.floats(name, dims, &counting(count));
    }
    writer
}
