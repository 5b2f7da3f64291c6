//! The XML of AWS's older services: lists of members with named texts.

use roxmltree::{Document, Node};

/// The members of every list of this name.
pub(crate) fn members<'a>(
    document: &'a Document<'a>,
    list: &'a str,
) -> impl Iterator<Item = Node<'a, 'a>> {
    document
        .descendants()
        .filter(move |node| node.tag_name().name() == list)
        .flat_map(|list| list.children())
        .filter(Node::is_element)
}

/// The members of a member's own list.
pub(crate) fn children<'a>(
    member: Node<'a, 'a>,
    list: &'a str,
) -> impl Iterator<Item = Node<'a, 'a>> {
    member
        .children()
        .filter(move |child| child.tag_name().name() == list)
        .flat_map(|list| list.children())
        .filter(Node::is_element)
}

/// The text of a member's child; empty where the child is.
pub(crate) fn text<'a>(member: Node<'a, 'a>, name: &str) -> Option<&'a str> {
    let child = member
        .children()
        .find(|child| child.tag_name().name() == name)?;
    Some(child.text().unwrap_or_default())
}

/// The text of the first element of this name.
pub(crate) fn first<'a>(document: &'a Document<'a>, name: &str) -> Option<&'a str> {
    document
        .descendants()
        .find(|node| node.tag_name().name() == name)?
        .text()
}
