package process

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestReasonOf: what counts, and that it is one line of bounded length whatever etcd says.
func TestReasonOf(t *testing.T) {
	for said, want := range map[string]string{
		"": "",
		`{"level":"info","msg":"starting"}` + "\n": "",
		`{"level":"warn","msg":"slow","error":"x"}` + "\n" + `{"level":"fatal","msg":"discovery failed","error":"bind: in use"}` + "\n" + `{"level":"info","msg":"closed"}`: "discovery failed: bind: in use",
		`{"level":"warn","msg":"failed to verify flags","error":"bad value"}` + "\n":                                                                                        "failed to verify flags: bad value",
		"flag provided but not defined: -x\n\n":                            "flag provided but not defined: -x",
		"panic: tocommit(755) is out of range\n\ngoroutine 1 [running]:\n": "panic: tocommit(755) is out of range",
		`{"level":"error","msg":"a\nb\u001b[31m` + `"}`:                    "a b[31m",
		"{\"level\":\"err": `{"level":"err`,
	} {
		if got := reasonOf([]byte(said)); got != want {
			t.Errorf("%q: got %q, want %q", said, got, want)
		}
	}
	long := reasonOf([]byte(`{"level":"fatal","msg":"` + strings.Repeat("ü", 10_000) + `"}`))
	if utf8.RuneCountInString(long) > reasonRunes+1 || !utf8.ValidString(long) {
		t.Errorf("the reason has %d bytes", len(long))
	}
}
