//! The wanted paths as a tree of keys.

const MAX_UNWANTED_KEYS: usize = 32; // remembered per object
const MAX_UNWANTED_LENGTH: usize = 64;
const MAX_STEP: usize = 256; // bytes

/// A key on a wanted path. It can have fields, and children on the way to other fields.
pub struct Node {
    children: Vec<Child>,
    unwanted: usize,          // of the children
    lengths: u64,             // bit n: a child's key has n bytes; bit 63: 63 or more
    pub following: Vec<Step>, // from the beginning, then from behind the value of each child
    pub columns: Vec<usize>,
    pub collections: Vec<usize>,
    pub is_parent: bool, // of wanted keys
    pub last_event: u64, // that had this key
}

/// A key in the object of a Node.
struct Child {
    key: Box<[u8]>,
    node: Option<usize>, // None if the key is not wanted
}

/// How the object went on in the last event. Events mostly have the same keys in one order, and the same whitespace.
pub struct Step {
    pub bytes: Vec<u8>, // to the next value or behind the object
    pub next: Next,
}

/// What comes next in an object.
#[derive(Clone, Copy)]
pub enum Next {
    /// A value; None: it is not wanted. `step` is the index of the step behind it, if it has one.
    Value {
        step: usize,
        node: Option<usize>,
    },
    End,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            bytes: b"}".into(),
            next: Next::End,
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self {
            children: Vec::new(),
            unwanted: 0,
            lengths: 0,
            following: vec![Step::default()],
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

    /// Return the index of a child.
    fn find(&self, key: &[u8]) -> Option<usize> {
        if self.lengths & length_bit(key) == 0 {
            return None;
        }
        self.children.iter().position(|child| *child.key == *key)
    }

    /// Return the node of a wanted key.
    pub fn wanted(&self, key: &[u8]) -> Option<usize> {
        self.children[self.find(key)?].node
    }

    /// Return what comes after a key; remember one that is not wanted, so that it is expected in the next event.
    pub fn after_key(&mut self, key: &[u8]) -> Next {
        let known = self.find(key);
        let can_learn = self.unwanted < MAX_UNWANTED_KEYS && key.len() <= MAX_UNWANTED_LENGTH;
        if known.is_none() && can_learn {
            self.unwanted += 1;
            self.add(key, None);
        }
        let index = known.or(can_learn.then_some(self.children.len() - 1));
        Next::Value {
            step: index.map_or(usize::MAX, |index| index + 1),
            node: index.and_then(|index| self.children[index].node),
        }
    }

    /// Remember a step, for the next event.
    pub fn learn(&mut self, step: usize, bytes: &[u8], next: Next) {
        if let Some(step) = self
            .following
            .get_mut(step)
            .filter(|_| bytes.len() <= MAX_STEP)
        {
            step.bytes.clear();
            step.bytes.extend_from_slice(bytes);
            step.next = next;
        }
    }

    /// Add a child; without a node it is not wanted.
    pub fn add(&mut self, key: &[u8], node: Option<usize>) {
        self.lengths |= length_bit(key);
        self.is_parent |= node.is_some();
        self.children.push(Child {
            key: key.into(),
            node,
        });
        self.following.push(Step::default());
    }
}

fn length_bit(key: &[u8]) -> u64 {
    1 << key.len().min(63)
}
