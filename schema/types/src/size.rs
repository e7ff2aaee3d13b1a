//! Sizes as people read them.

/// A size for people, such as `12.3 MiB`.
pub fn show_size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_the_unit_that_suits_it() {
        assert_eq!(show_size(999), "999 B");
        assert_eq!(show_size(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(show_size(12_897_485), "12.3 MiB");
    }
}
