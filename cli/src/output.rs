//! Printing for people and for programs.

use anyhow::{Context, Result};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

/// Prints `value` in `format`; `table` lays it out for people.
pub(crate) fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    match format {
        Format::Table => print!("{}", table(value)),
        Format::Json => println!("{}", serde_json::to_string_pretty(value).context("cannot print as JSON")?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(value).context("cannot print as YAML")?),
    }
    Ok(())
}

/// Left-aligned columns, three spaces apart, as kubectl prints them.
pub(crate) fn columns(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines: Vec<Vec<String>> = vec![header.iter().map(|name| (*name).to_owned()).collect()];
    lines.extend(rows);
    let widths: Vec<usize> = (0..header.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(padded.join("   ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["m1".to_owned(), "leader".to_owned()]];
        assert_eq!(columns(&["NAME", "ROLE"], rows.into_iter()), "NAME   ROLE\nm1     leader\n");
    }
}
