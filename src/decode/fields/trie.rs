//! The paths of a map as a trie, which a scan of a record walks.

use super::path::{Path, Step};
use crate::decode::scan::{Scanner, SyntaxError, Value};
use crate::event::Span;

/// The paths of a map.
#[derive(Clone, Debug, Default)]
pub(super) struct Trie {
    root: Node,
    /// The number of paths.
    pub reads: usize,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// The reads whose path ends here.
    reads: Vec<usize>,
    members: Vec<(Box<str>, Node)>,
    elements: Vec<(usize, Node)>,
}

impl Node {
    /// Returns the node of a step, made if it is missing.
    fn child(&mut self, step: &Step) -> &mut Node {
        fn of<K: PartialEq>(children: &mut Vec<(K, Node)>, key: K) -> &mut Node {
            let at = children.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
                children.push((key, Node::default()));
                children.len() - 1
            });
            &mut children[at].1
        }
        match step {
            Step::Member(name) => of(&mut self.members, name.clone()),
            Step::Element(index) => of(&mut self.elements, *index),
        }
    }

    fn member(&self, name: &str) -> Option<&Node> {
        self.members.iter().find(|(known, _)| **known == *name).map(|(_, node)| node)
    }
}

/// The values that a scan found.
struct Found<'a> {
    /// The value of each read; None where the record has none.
    values: &'a mut [Option<Value>],
    /// The read of the first mapped member that the record has twice.
    duplicate: Option<usize>,
}

impl Trie {
    /// Adds a path and returns the index of its read.
    pub fn add(&mut self, path: &Path) -> usize {
        let mut node = &mut self.root;
        for step in path.steps() {
            node = node.child(step);
        }
        node.reads.push(self.reads);
        self.reads += 1;
        self.reads - 1
    }

    /// Scans the object at the scanner's position and returns the values of the paths in `values`, and the read that
    /// the record has twice, if there is one.
    pub fn scan(
        &self,
        scanner: &mut Scanner<'_>,
        values: &mut [Option<Value>],
    ) -> Result<Option<usize>, SyntaxError> {
        let mut found = Found { values, duplicate: None };
        if scanner.peek() != Some(b'{') {
            // The error of the standard event.
            return scanner.visit_members(1, |_, _| Ok(())).map(|()| None);
        }
        walk(&self.root, scanner, 1, &mut found)?;
        Ok(found.duplicate)
    }
}

/// Scans the value at the scanner's position, which the path of `node` leads to. An object or array is at nesting depth
/// `depth`.
fn walk(
    node: &Node,
    scanner: &mut Scanner<'_>,
    depth: usize,
    found: &mut Found<'_>,
) -> Result<(), SyntaxError> {
    let start = scanner.at;
    let value = match scanner.peek() {
        Some(b'{') if !node.members.is_empty() => {
            scanner.visit_members(depth, |scanner, name| match node.member(&scanner.unescaped(&name)) {
                Some(child) => walk(child, scanner, depth + 1, found),
                None => scanner.value(depth + 1).map(drop),
            })?;
            Value::Object(Span::new(start..scanner.at))
        }
        Some(b'[') if !node.elements.is_empty() => {
            scanner.visit_elements(depth, |scanner, index| {
                match node.elements.iter().find(|(known, _)| *known == index) {
                    Some((_, child)) => walk(child, scanner, depth + 1, found),
                    None => scanner.value(depth + 1).map(drop),
                }
            })?;
            Value::Array
        }
        _ => scanner.value(depth)?,
    };
    for &read in &node.reads {
        if found.values[read].replace(value).is_some() {
            found.duplicate = found.duplicate.or(Some(read));
        }
    }
    Ok(())
}
