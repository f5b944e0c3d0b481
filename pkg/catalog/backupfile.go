package catalog

import "strings"

// The names of a backup's data say how it is compressed and whether it is sealed. A backup has one
// of them, and which one its manifest tells; without a manifest it is DataFile.
const (
	// DataFile is the gzip of a snapshot as etcdctl saves it, which all other tools read too.
	DataFile           = "etcd.backup.gz"
	zstdFile           = "etcd.backup.zst"
	sealedSuffix       = ".age"
	manifestFile       = "_etcd_manager_manifest.json"
	metaFile           = "_etcd_backup.meta"
	CompressionGzip    = "gzip"
	CompressionZstd    = "zstd"
	DefaultCompression = CompressionGzip
)

// DataFileOf is the name of the data of a backup that is compressed like that, and sealed or not.
func DataFileOf(compression string, sealed bool) string {
	file := DataFile
	if compression == CompressionZstd {
		file = zstdFile
	}
	if sealed {
		file += sealedSuffix
	}
	return file
}

// isDataFile tells the names that data can have.
func isDataFile(file string) bool {
	file = strings.TrimSuffix(file, sealedSuffix)
	return file == DataFile || file == zstdFile
}

// IsBackupFile tells whether a key is one that reading a backup, and bringing it forward, needs:
// its data, its manifest, its meta file, or a segment of changes. Everything else in the store,
// above all what lies below control/, is none.
func IsBackupFile(key string) bool {
	if rest, ok := strings.CutPrefix(key, changesPrefix); ok {
		incarnation, segment, _ := strings.Cut(rest, "/")
		_, err := ParseSegmentName(segment)
		return err == nil && validName("incarnation", incarnation) == nil
	}
	name, file, _ := strings.Cut(key, "/")
	if file == manifestFile || file == metaFile || isDataFile(file) {
		return ValidBackupName(name) == nil
	}
	return false
}

// IsSegmentsPrefix tells whether a prefix is the directory of one incarnation's segments, which bringing a backup forward has to list.
func IsSegmentsPrefix(prefix string) bool {
	rest, ok := strings.CutPrefix(prefix, changesPrefix)
	if !ok {
		return false
	}
	incarnation, ok := strings.CutSuffix(rest, "/")
	return ok && !strings.Contains(incarnation, "/") && validName("incarnation", incarnation) == nil
}
