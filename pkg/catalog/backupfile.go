package catalog

import "strings"

// IsBackupFile tells whether a key is one that reading a backup needs: its data, its manifest or its meta file. Everything else in the
// store, above all what lies below control/, is none.
func IsBackupFile(key string) bool {
	name, file, _ := strings.Cut(key, "/")
	switch file {
	case DataFile, manifestFile, metaFile:
		return ValidBackupName(name) == nil
	}
	return false
}
