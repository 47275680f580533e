//! Tables kept in a folder of TOML files, changed one at a time. What else a file holds, comments included, stays as it is: the
//! table's own lines are replaced, and the result is read again before it is written.

use super::error::ApiError;
use crate::config::clients::toml_files;
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A folder whose files hold `[[table]]`s, each with a `name`.
pub(super) struct Tables<'a> {
    pub folder: &'a Path,
    /// `channel` or `client`.
    pub table: &'static str,
    /// Mode of the files written.
    pub mode: u32,
}

/// A file and the names in it, in order.
struct File {
    path: PathBuf,
    text: String,
    entries: Vec<toml::Table>,
}

impl Tables<'_> {
    /// Every table, by name, as its own file's text.
    pub fn all(&self) -> Result<BTreeMap<String, toml::Table>, ApiError> {
        let entries = self.files()?.into_iter().flat_map(|f| f.entries);
        Ok(entries.filter_map(|t| Some((name_of(&t)?.to_owned(), t))).collect())
    }

    /// Writes a table, in the file that has it, or in `<name>.toml`.
    pub fn put(&self, name: &str, table: &toml::Table) -> Result<(), ApiError> {
        let block = self.render(table)?;
        match self.holding(name)? {
            Some((file, index)) => {
                let mut expected = file.entries.clone();
                expected[index] = table.clone();
                self.rewrite(&file, index, &block, &expected)
            }
            None => {
                let path = self.folder.join(format!("{name}.toml"));
                // A file of that name which holds others: the new one goes below them.
                let (text, mut expected) = match self.files()?.into_iter().find(|f| f.path == path) {
                    Some(file) => (format!("{}\n\n{block}", file.text.trim_end()), file.entries),
                    None => (block, Vec::new()),
                };
                expected.push(table.clone());
                self.write_checked(&path, &text, &expected)
            }
        }
    }

    /// Takes a table away; a file left without anything goes too. `false`: there was none.
    pub fn remove(&self, name: &str) -> Result<bool, ApiError> {
        let Some((file, index)) = self.holding(name)? else { return Ok(false) };
        if file.entries.len() == 1 {
            fs::remove_file(&file.path).and_then(|()| sync_folder(self.folder)).map_err(|e| failed(&file.path, &e))?;
        } else {
            let mut expected = file.entries.clone();
            expected.remove(index);
            self.rewrite(&file, index, "", &expected)?;
        }
        Ok(true)
    }

    fn render(&self, table: &toml::Table) -> Result<String, ApiError> {
        let list = toml::Value::Array(vec![toml::Value::Table(table.clone())]);
        toml::to_string(&toml::Table::from_iter([(self.table.to_owned(), list)])).map_err(|_| ApiError::internal())
    }

    fn files(&self) -> Result<Vec<File>, ApiError> {
        let paths = toml_files(self.folder).map_err(|e| failed(self.folder, &e))?;
        paths
            .into_iter()
            .map(|path| {
                let text = fs::read_to_string(&path).map_err(|e| failed(&path, &e))?;
                let entries = self.entries(&text).ok_or_else(|| {
                    let hint = "mend it by hand (hie check names the line), then try again";
                    ApiError::conflict(format!("{} cannot be read as TOML", path.display()), hint)
                })?;
                Ok(File { path, text, entries })
            })
            .collect()
    }

    fn entries(&self, text: &str) -> Option<Vec<toml::Table>> {
        let whole: toml::Table = toml::from_str(text).ok()?;
        match whole.get(self.table) {
            None => Some(Vec::new()),
            Some(list) => list.as_array()?.iter().map(|e| e.as_table().cloned()).collect(),
        }
    }

    fn holding(&self, name: &str) -> Result<Option<(File, usize)>, ApiError> {
        let with_index = |f: File| f.entries.iter().position(|t| name_of(t) == Some(name)).map(|i| (f, i));
        Ok(self.files()?.into_iter().find_map(with_index))
    }

    fn rewrite(&self, file: &File, index: usize, block: &str, expected: &[toml::Table]) -> Result<(), ApiError> {
        let range = self.lines_of(&file.text, index).ok_or_else(|| by_hand(&file.path))?;
        let gap = if block.is_empty() || file.text[range.end..].trim().is_empty() { "" } else { "\n" };
        let text = format!("{}{block}{gap}{}", &file.text[..range.start], &file.text[range.end..]);
        self.write_checked(&file.path, &text, expected)
    }

    /// Writes nothing that would not be read back as expected.
    fn write_checked(&self, path: &Path, text: &str, expected: &[toml::Table]) -> Result<(), ApiError> {
        match self.entries(text).as_deref() == Some(expected) {
            true => self.write(path, text),
            false => Err(by_hand(path)),
        }
    }

    /// The bytes of the n-th `[[table]]`: from its heading to the next one's, whose comment lines stay with that one.
    fn lines_of(&self, text: &str, index: usize) -> Option<Range<usize>> {
        let heading = |line: &str| {
            let inner = line.trim_start().strip_prefix("[[")?.split_once("]]")?.0;
            (inner.trim() == self.table).then_some(())
        };
        let mut starts = Vec::new();
        let (mut at, mut comment) = (0, None);
        for line in text.split_inclusive('\n') {
            if heading(line).is_some() {
                starts.push((at, comment.unwrap_or(at)));
            }
            comment = match line.trim_start().starts_with('#') {
                true => comment.or(Some(at)),
                false => None,
            };
            at += line.len();
        }
        let (start, _) = *starts.get(index)?;
        Some(start..starts.get(index + 1).map_or(text.len(), |(_, with_comment)| *with_comment))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), ApiError> {
        let write = || -> io::Result<()> {
            fs::create_dir_all(self.folder)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = self.folder.join(format!(".{name}.new"));
            // One left over from a crash may have another mode.
            let _ = fs::remove_file(&aside);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(self.mode).open(&aside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, path)?;
            sync_folder(self.folder)
        };
        write().map_err(|e| failed(path, &e))
    }
}

fn name_of(table: &toml::Table) -> Option<&str> {
    table.get("name")?.as_str()
}

fn by_hand(path: &Path) -> ApiError {
    let hint = "change it in the file, or move it to a file of its own";
    ApiError::conflict(format!("{} is not written in a way that can be changed from here", path.display()), hint)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

fn failed(path: &Path, error: &io::Error) -> ApiError {
    ApiError::unavailable(format!("{}: {error}", path.display()), "the node's user must be able to read and write there")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        toml::from_str(text).unwrap()
    }

    fn tables(folder: &Path) -> Tables<'_> {
        Tables { folder, table: "channel", mode: 0o640 }
    }

    const FILE: &str = "# the site's own\nother = 1\n\n# first\n[[channel]]\nname = \"a.one\"\n[[channel.route]]\nname = \"r\"\n\n# second\n[[ channel ]]\nname = \"a.two\" # mine\n";

    #[test]
    fn a_table_is_changed_in_its_place_and_comments_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.toml");
        fs::write(&path, FILE).unwrap();
        tables(folder.path()).put("a.one", &table("name = \"a.one\"\npriority = 5\n[[route]]\nname = \"r2\"")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("other = 1\n\n# first\n[[channel]]") && text.contains("# second") && text.contains("# mine"),
            "{text}"
        );
        assert!(text.contains("priority = 5") && text.contains("r2") && !text.contains("\"r\""), "{text}");
        assert!(tables(folder.path()).remove("a.two").unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("a.one") && !text.contains("a.two"), "{text}");
        assert!(tables(folder.path()).remove("a.one").unwrap());
        assert!(!path.exists());
        assert!(!tables(folder.path()).remove("a.one").unwrap());
    }

    #[test]
    fn a_new_one_gets_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("channels.d");
        tables(&inner).put("b.new", &table("name = \"b.new\"")).unwrap();
        assert_eq!(fs::read_to_string(inner.join("b.new.toml")).unwrap(), "[[channel]]\nname = \"b.new\"\n");
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
    }

    #[test]
    fn a_heading_inside_a_text_is_noticed_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        let text = "[[channel]]\nname = \"a\"\nwhen = '''\n[[channel]]\n'''\n[[channel]]\nname = \"b\"\n";
        fs::write(&path, text).unwrap();
        tables(folder.path()).put("b", &table("name = \"b\"\npriority = 1")).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}
