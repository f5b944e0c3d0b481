package testutil

import (
	"fmt"
	"runtime/metrics"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// Cost is how much memory a parser may take for an input: Fixed bytes, and PerByte for each byte of it.
type Cost struct{ Fixed, PerByte int64 }

// Usual is for parsers that build no large tables: 1 MiB, and 200 bytes for each byte. Two bytes of JSON or of a protocol buffer
// can be one element of a list.
var Usual = Cost{Fixed: 1 << 20, PerByte: 200}

// patience is how long a parser may take for an input of a fuzz target. Inputs are at most 1 MiB long.
const patience = 20 * time.Second

// maxShown is how long the text of an error may be, in bytes.
const maxShown = 8192

// Untrusted runs a parser on an input of size bytes. The parser must end, must allocate no more than most allows, and must return
// an error that a person can read, or none.
func Untrusted(t testing.TB, size int, most Cost, parse func() error) {
	t.Helper()
	// A panic is the only way in which a fuzz target that hangs gets its input kept.
	watch := time.AfterFunc(patience, func() { panic(fmt.Sprintf("the parser hasn't ended after %s, for %d bytes", patience, size)) })
	before := allocated()
	err := parse()
	took := allocated() - before
	watch.Stop()
	if limit := most.Fixed + most.PerByte*int64(size); took > limit {
		t.Errorf("%d bytes were allocated for an input of %d; at most %d are in proportion", took, size, limit)
	}
	if err == nil {
		return
	}
	if problem := unreadable(err.Error()); problem != "" {
		t.Errorf("the error %s: %.300q", problem, err)
	}
}

// unreadable says why the text of an error is not fit for a log or a terminal.
func unreadable(s string) string {
	switch {
	case s == "":
		return "says nothing"
	case len(s) > maxShown:
		return fmt.Sprintf("is %d bytes long", len(s))
	case !utf8.ValidString(s):
		return "isn't UTF-8"
	}
	for _, r := range s {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return fmt.Sprintf("has the control character %U", r)
		}
	}
	return ""
}

// allocated is how many bytes this process has allocated on the heap since its start.
func allocated() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}
