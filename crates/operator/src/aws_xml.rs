//! Reads the XML of AWS's query protocol: lists are elements with `member` children, and an empty list is an empty
//! element or none at all.

use roxmltree::{Document, Node};

pub(crate) fn find_list_members<'a>(
    document: &'a Document<'a>,
    list: &'a str,
) -> impl Iterator<Item = Node<'a, 'a>> {
    document
        .descendants()
        .filter(move |node| node.tag_name().name() == list)
        .flat_map(|list| list.children())
        .filter(Node::is_element)
}

pub(crate) fn find_child_members<'a>(
    member: Node<'a, 'a>,
    list: &'a str,
) -> impl Iterator<Item = Node<'a, 'a>> {
    member
        .children()
        .filter(move |child| child.tag_name().name() == list)
        .flat_map(|list| list.children())
        .filter(Node::is_element)
}

/// The text of a child element; an empty text if the element is empty, none if it is missing.
pub(crate) fn read_child_text<'a>(member: Node<'a, 'a>, name: &str) -> Option<&'a str> {
    let child = member
        .children()
        .find(|child| child.tag_name().name() == name)?;
    Some(child.text().unwrap_or_default())
}

/// The text of the first element of this name, at any depth.
pub(crate) fn read_first_text<'a>(document: &'a Document<'a>, name: &str) -> Option<&'a str> {
    document
        .descendants()
        .find(|node| node.tag_name().name() == name)?
        .text()
}
