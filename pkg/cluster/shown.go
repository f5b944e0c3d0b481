package cluster

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Shown is a text that somebody else has written as it may stand in a message: at most that many bytes of it, and control
// characters, which could change a terminal, escaped.
func Shown(s string, most int) string {
	cut := len(s) > most
	if cut {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	var b strings.Builder
	for i, r := range s {
		if r == utf8.RuneError || !strconv.IsPrint(r) && r != '\n' && r != '\t' {
			_, size := utf8.DecodeRuneInString(s[i:])
			quoted := strconv.Quote(s[i : i+size])
			b.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		b.WriteRune(r)
	}
	if cut {
		b.WriteString("…")
	}
	return b.String()
}
