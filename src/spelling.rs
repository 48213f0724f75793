//! The word that was probably meant.

/// Returns the known word that is nearest to `word`, if their edit distance is at most `most`.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>, most: usize) -> Option<&'a str> {
    let nearest = known.map(|known| (distance(known, word), known)).min();
    nearest.filter(|&(distance, _)| distance <= most).map(|(_, known)| known)
}

/// Returns the number of characters to insert, delete or replace to get from one word to the other, after V. I.
/// Levenshtein.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(from != to)).min(row[j] + 1).min(above + 1);
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or_default()
}
