package cluster

import (
	"strings"
	"testing"
)

func TestShown(t *testing.T) {
	for text, want := range map[string]string{
		"plain":           "plain",
		"":                "",
		"a\x1b[31mb":      `a\x1b[31mb`,
		"größe\u202e":     `größe\u202e`,
		"no\xffutf8":      `no\xffutf8`,
		"two\nlines":      "two\nlines",
		"0123456789abcde": "0123456789a…",
		"0123456789ö":     "0123456789…",
	} {
		if got := Shown(text, 11); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
	if got := Shown(strings.Repeat("ö", 100), 1); got != "…" {
		t.Errorf("%q", got)
	}
}
