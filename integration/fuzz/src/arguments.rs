//! Parameters of a method that are well made and mean nothing, from its shape.

use cofferdam_wire::needs::Shape;

/// A message whose root is a struct of this shape: its texts are `text`, its data is what `word` gives; and whichever other
/// pointers `too` names are texts as well, whatever they should be.
pub fn arguments(
    shape: &Shape,
    text: &str,
    mut word: impl FnMut() -> u64,
    mut too: impl FnMut(u32) -> bool,
) -> Vec<u8> {
    let (data, pointers) = (usize::from(shape.data), usize::from(shape.pointers));
    let mut words = vec![u64::from(shape.data) << 32 | u64::from(shape.pointers) << 48];
    words.resize_with(1 + data, &mut word);
    words.resize(1 + data + pointers, 0);
    for pointer in (0..u32::from(shape.pointers)).filter(|n| shape.texts.contains(n) || too(*n)) {
        // A list of bytes, which begins so many words behind its pointer and ends with a zero byte.
        let at = 1 + data + pointer as usize;
        let (away, count) = ((words.len() - at - 1) as u64, text.len() as u64 + 1);
        words[at] = 1 | away << 2 | 2 << 32 | count << 35;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize((text.len() + 1).next_multiple_of(8), 0);
        words.extend(bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default())));
    }
    let mut message = [0u32.to_le_bytes(), (words.len() as u32).to_le_bytes()].concat();
    words.iter().for_each(|word| message.extend(word.to_le_bytes()));
    message
}
