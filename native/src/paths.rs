//! The wanted paths as a tree of keys.

const MAX_UNWANTED_KEYS: usize = 32; // remembered per object
const MAX_UNWANTED_LENGTH: usize = 64;

/// A key on a wanted path. It can have fields, and children on the way to other fields.
pub struct Node {
    pub children: Vec<Child>,
    unwanted: usize,           // of the children
    lengths: u64,              // bit n: a child's key has n bytes; bit 63: 63 or more
    pub following: Vec<usize>, // which child came first in earlier events, then which came after each child
    pub columns: Vec<usize>,
    pub collections: Vec<usize>,
    pub is_parent: bool, // of wanted keys
    pub last_event: u64, // that had this key
}

/// A key in the object of a Node.
pub struct Child {
    key: Box<str>,
    pub quoted: Option<Box<[u8]>>, // with its colon
    pub node: Option<usize>,       // None if the key is not wanted
}

impl Default for Node {
    fn default() -> Self {
        Self {
            children: Vec::new(),
            unwanted: 0,
            lengths: 0,
            following: vec![0],
            columns: Vec::new(),
            collections: Vec::new(),
            is_parent: false,
            last_event: 0,
        }
    }
}

impl Node {
    /// Whether no field has its value here.
    pub fn is_only_parent(&self) -> bool {
        self.columns.is_empty() && self.collections.is_empty()
    }

    /// The collection whose value is here, if no other field has its value here or below.
    pub fn only_collection(&self) -> Option<usize> {
        match self.collections[..] {
            [collection] if self.columns.is_empty() && !self.is_parent => Some(collection),
            _ => None,
        }
    }

    /// Return the position of a child.
    pub fn find(&self, key: &str) -> Option<usize> {
        if self.lengths & length_bit(key) == 0 {
            return None;
        }
        self.children.iter().position(|child| *child.key == *key)
    }

    /// Find a key; remember one that is not wanted, so that it is expected in the next event.
    pub fn find_or_learn(&mut self, key: &str) -> Option<usize> {
        let known = self.find(key);
        if known.is_some() || self.unwanted >= MAX_UNWANTED_KEYS || key.len() > MAX_UNWANTED_LENGTH
        {
            return known;
        }
        self.unwanted += 1;
        self.add(key, None);
        Some(self.children.len() - 1)
    }

    /// Add a child; without a node it is not wanted.
    pub fn add(&mut self, key: &str, node: Option<usize>) {
        self.lengths |= length_bit(key);
        self.is_parent |= node.is_some();
        self.children.push(Child {
            quoted: quoted(key),
            key: key.into(),
            node,
        });
        self.following.push(self.children.len());
    }
}

fn length_bit(key: &str) -> u64 {
    1 << key.len().min(63)
}

/// The key as it is mostly written, with its colon; None if it needs escapes.
fn quoted(key: &str) -> Option<Box<[u8]>> {
    let is_plain = key
        .bytes()
        .all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
    is_plain.then(|| format!("\"{key}\":").into_bytes().into())
}
