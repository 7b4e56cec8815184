//! Which names, links and trees an artifact may have: pure functions and one small model of the
//! tree, shared by everything that reads or makes artifacts.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization as _;

use super::error::refuse;
use super::tar::Kind;
use super::{Error, Limits, Rule};

/// The marker that says that an install is complete, at the root of the installed tree.
pub(super) const MARKER: &str = ".platctrl-install.json";

/// Checks an entry's path and returns it in its one form, without a leading `./` and without the
/// trailing slash of a directory. `None` is the root itself (`./`).
pub(super) fn path<'a>(
    raw: &'a [u8],
    kind: Kind,
    limits: &Limits,
) -> Result<Option<&'a str>, Error> {
    let path = text(raw, raw, limits)?;
    if path.starts_with('/') {
        return Err(refuse(
            raw,
            Rule::AbsolutePath,
            "its path begins at the root",
        ));
    }
    let path = match (kind, path) {
        // What `tar -C DIR -cz .` begins with.
        (Kind::Directory, "./") => return Ok(None),
        (Kind::Directory, path) => path.strip_suffix('/').unwrap_or(path),
        (_, path) => path,
    };
    let path = path.strip_prefix("./").unwrap_or(path);
    let mut depth = 0;
    for component in path.split('/') {
        depth += 1;
        if component == ".." {
            return Err(refuse(raw, Rule::ParentComponent, "its path has a `..`"));
        }
        if component.is_empty() || component == "." || component.trim().is_empty() {
            let detail = "its path has an empty, `.` or blank component";
            return Err(refuse(raw, Rule::BadComponent, detail));
        }
        if component.len() > limits.component_bytes {
            let detail = format!("a name longer than {} bytes", limits.component_bytes);
            return Err(refuse(raw, Rule::PathTooLong, detail));
        }
    }
    if depth > limits.depth {
        let detail = format!("it is nested deeper than {} levels", limits.depth);
        return Err(refuse(raw, Rule::PathTooLong, detail));
    }
    if fold(path) == MARKER {
        return Err(refuse(
            raw,
            Rule::ReservedName,
            "the installer keeps this name for itself",
        ));
    }
    Ok(Some(path))
}

fn text<'a>(raw: &'a [u8], entry: &[u8], limits: &Limits) -> Result<&'a str, Error> {
    if raw.len() > limits.path_bytes {
        let detail = format!("a path longer than {} bytes", limits.path_bytes);
        return Err(refuse(entry, Rule::PathTooLong, detail));
    }
    match std::str::from_utf8(raw) {
        Ok(text) if text.chars().any(char::is_control) => Err(refuse(
            entry,
            Rule::BadCharacter,
            "its name or target has control characters",
        )),
        Ok(text) => Ok(text),
        Err(_) => Err(refuse(
            entry,
            Rule::BadCharacter,
            "its name or target is not UTF-8",
        )),
    }
}

/// Checks where the symbolic link at `path` points.
///
/// `..` is allowed only at the front of the target. The link's own directory is a real one (nothing
/// may lie beneath a link), so those go up real directories, and are counted; every further
/// component goes down, possibly through other links, each of which obeys the same rule. So however
/// links are chained, nothing leaves the artifact.
pub(super) fn symlink<'a>(path: &str, raw: &'a [u8], limits: &Limits) -> Result<&'a str, Error> {
    let bad = |detail: &str| {
        let detail = format!("it links to `{}`: {detail}", super::escape(raw));
        Err(refuse(path.as_bytes(), Rule::SymlinkTarget, detail))
    };
    let target = text(raw, path.as_bytes(), limits)?;
    if target.is_empty() {
        return bad("the target is empty");
    }
    if target.starts_with('/') {
        return bad("the target has to be relative");
    }
    let mut levels = path.split('/').count() - 1;
    let mut down = false;
    for component in target.strip_suffix('/').unwrap_or(target).split('/') {
        match component {
            "" => return bad("the target has an empty component"),
            "." => {}
            ".." if down => return bad("`..` may only stand at the front"),
            ".." if levels == 0 => return bad("the target is outside the artifact"),
            ".." => levels -= 1,
            _ if component.len() > limits.component_bytes => {
                return bad("the target has a component that is too long");
            }
            _ => down = true,
        }
    }
    Ok(target)
}

/// Names that are equal to somebody: the same but for Unicode's composition or ASCII case.
fn fold(path: &str) -> String {
    if path.is_ascii() {
        path.to_ascii_lowercase()
    } else {
        path.nfc().collect::<String>().to_ascii_lowercase()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File,
    Directory,
    /// A directory that no entry of its own has named yet.
    ImpliedDirectory,
    Symlink,
}

/// What an archive has put where so far.
#[derive(Debug)]
pub(super) struct Tree {
    /// By folded path; the real spelling only where it is another.
    nodes: HashMap<Box<str>, (Node, Option<Box<str>>)>,
    /// The directory that the last entry was in: most entries are in the same one.
    last_parent: String,
    names_bytes: usize,
    entries: u64,
    limits: Limits,
}

/// What to do for an entry that was accepted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Placement<'a> {
    /// Parents that have to be made first, outermost first.
    pub(super) parents: Vec<&'a str>,
    /// The entry is a directory that has been made already, as somebody's parent.
    pub(super) exists: bool,
}

impl Tree {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            nodes: HashMap::new(),
            last_parent: String::new(),
            names_bytes: 0,
            entries: 0,
            limits: limits.clone(),
        }
    }

    /// Adds the entry `path`, or says which rule of the tree it breaks.
    pub(super) fn add<'a>(&mut self, path: &'a str, kind: Kind) -> Result<Placement<'a>, Error> {
        let mut placement = Placement::default();
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if parent != self.last_parent {
            for (end, _) in path.match_indices('/') {
                self.add_parent(path, &path[..end], &mut placement)?;
            }
            parent.clone_into(&mut self.last_parent);
        }
        let node = match kind {
            Kind::File | Kind::HardLink => Node::File,
            Kind::Directory => Node::Directory,
            Kind::Symlink => Node::Symlink,
        };
        match self.find(path, path)? {
            None => self.insert(path, node)?,
            Some(there @ Node::ImpliedDirectory) if node == Node::Directory => {
                *there = Node::Directory;
                placement.exists = true;
                self.count()?;
            }
            Some(_) => {
                return Err(refuse(
                    path.as_bytes(),
                    Rule::Duplicate,
                    "it is there already",
                ));
            }
        }
        Ok(placement)
    }

    fn add_parent<'a>(
        &mut self,
        path: &str,
        parent: &'a str,
        placement: &mut Placement<'a>,
    ) -> Result<(), Error> {
        match self.find(parent, path)? {
            None => {
                self.insert(parent, Node::ImpliedDirectory)?;
                placement.parents.push(parent);
                Ok(())
            }
            Some(Node::Directory | Node::ImpliedDirectory) => Ok(()),
            Some(Node::File | Node::Symlink) => {
                let detail = format!("`{}` is not a directory", super::escape(parent.as_bytes()));
                Err(refuse(path.as_bytes(), Rule::ParentNotDirectory, detail))
            }
        }
    }

    /// Looks `path` up; another spelling of the same name is refused, in the name of `entry`.
    fn find(&mut self, path: &str, entry: &str) -> Result<Option<&mut Node>, Error> {
        match self.nodes.get_mut(fold(path).as_str()) {
            None => Ok(None),
            Some((node, spelling)) => {
                let folded;
                let there = match spelling {
                    Some(there) => there,
                    None => {
                        folded = fold(path);
                        folded.as_str()
                    }
                };
                if there == path {
                    return Ok(Some(node));
                }
                let there = super::escape(there.as_bytes());
                let detail = format!("`{there}` differs only by case or Unicode form");
                Err(refuse(entry.as_bytes(), Rule::Collision, detail))
            }
        }
    }

    fn insert(&mut self, path: &str, node: Node) -> Result<(), Error> {
        self.count()?;
        self.add_name(path, path)?;
        let folded = fold(path);
        let spelling = (folded != path).then(|| path.into());
        self.nodes.insert(folded.into(), (node, spelling));
        Ok(())
    }

    /// Nodes of the tree so far, the root not among them.
    pub(super) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    fn count(&mut self) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let detail = format!("it has more than {} entries", self.limits.entries);
            return Err(refuse(b"", Rule::TooManyEntries, detail));
        }
        Ok(())
    }

    /// Counts the bytes of a name or link target that is kept in memory.
    pub(super) fn add_name(&mut self, name: &str, entry: &str) -> Result<(), Error> {
        self.names_bytes += name.len();
        if self.names_bytes > self.limits.names_bytes {
            let limit = self.limits.names_bytes;
            let detail = format!("all names together are longer than {limit} bytes");
            return Err(refuse(entry.as_bytes(), Rule::TooLarge, detail));
        }
        Ok(())
    }

    /// Checks that a hard link's target is a file that came earlier, and returns it.
    pub(super) fn hard_link<'a>(&mut self, path: &str, raw: &'a [u8]) -> Result<&'a str, Error> {
        let target = self::path(raw, Kind::HardLink, &self.limits).ok().flatten();
        match target {
            Some(target) if matches!(self.find(target, path), Ok(Some(Node::File))) => Ok(target),
            _ => {
                let raw = super::escape(raw);
                let detail = format!("it links to `{raw}`, which is no file that came before it");
                Err(refuse(path.as_bytes(), Rule::HardLinkTarget, detail))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_takes_as_many_entries_as_the_limit_and_no_more() {
        let limits = Limits::default();
        let mut tree = Tree::new(&limits);
        for i in 0..limits.entries {
            tree.add(&format!("{i:x}"), Kind::Directory).unwrap();
        }
        let error = tree.add("one-more", Kind::File).unwrap_err();
        assert!(
            error.to_string().contains("more than 200000 entries"),
            "{error}"
        );
    }

    #[test]
    fn parents_are_made_once_and_before_their_children() {
        let mut tree = Tree::new(&Limits::default());
        let parents = |tree: &mut Tree, path| {
            let parents: Vec<_> = tree.add(path, Kind::File).unwrap().parents;
            parents.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(parents(&mut tree, "a/b/c"), ["a", "a/b"]);
        assert_eq!(parents(&mut tree, "a/b/d"), [] as [&str; 0]);
        assert_eq!(parents(&mut tree, "a/e/f"), ["a/e"]);
        assert_eq!(parents(&mut tree, "g"), [] as [&str; 0]);
        assert!(tree.add("a", Kind::Directory).unwrap().exists);
        assert!(tree.add("a", Kind::Directory).is_err());
    }
}
