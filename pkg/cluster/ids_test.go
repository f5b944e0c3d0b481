package cluster

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// outside are names that lead, or could lead, to another place than one file of a directory.
func outside() []string {
	return []string{"", ".", "..", "../..", "../../..", "/", "/etc", "a/b", "a/../../b", "a/", `..\..`, `a\b`, "a\x00b", "\x00",
		"a\nb", "a\x7f", ".hidden", ".removing-x",
		strings.Repeat("a", maxName+1), strings.Repeat("a", 5000), "\xff\xfe"}
}

// TestNames: what becomes a path element is one, and nothing else is let through in any form.
func TestNames(t *testing.T) {
	parsers := map[string]func(string) error{
		"token":     func(s string) error { _, err := ParseToken(s); return err },
		"operation": func(s string) error { _, err := ParseOperationID(s); return err },
		"node":      func(s string) error { _, err := ParseNodeID(s); return err },
		"member":    CheckNodeName,
	}
	for what, parse := range parsers {
		for _, s := range outside() {
			if err := parse(s); !errors.Is(err, ErrName) || len(err.Error()) > 400 {
				t.Errorf("%s %.50q: %v", what, s, err)
			}
		}
		for _, s := range []string{"a", "etcd-a", "Q7mZ-_x9", "2026-01-30T01:02:03Z-000009", "a..b", "a.2", "adopted-cdf818194e3a8c32",
			"ü", strings.Repeat("a", maxName)} {
			if err := parse(s); err != nil {
				t.Errorf("%s %q: %v", what, s, err)
			}
		}
	}
	if _, err := ParseToken("x" + StagingSuffix); !errors.Is(err, ErrName) {
		t.Errorf("a token that names what is half built of another: %v", err)
	}
	for _, s := range []string{"a b", "a=b", "a,b"} {
		if _, err := ParseNodeID(s); !errors.Is(err, ErrName) {
			t.Errorf("node id %q: %v", s, err)
		}
		if err := CheckNodeName(s); err != nil { // another tool's member
			t.Errorf("member %q: %v", s, err)
		}
	}
}

// TestNamesInObjects: no stored object brings such a name in, whatever field it stands in.
func TestNamesInObjects(t *testing.T) {
	type object struct {
		Token     Token          `json:"token"`
		Operation OperationID    `json:"operation"`
		Node      NodeID         `json:"node"`
		Nodes     map[NodeID]int `json:"nodes"`
		Tokens    []Token        `json:"tokens"`
	}
	for _, s := range outside()[1:] {
		name, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{`{"token":NAME}`, `{"operation":NAME}`, `{"node":NAME}`, `{"nodes":{NAME:1}}`,
			`{"tokens":["a",NAME]}`} {
			var o object
			if err := json.Unmarshal([]byte(strings.Replace(text, "NAME", string(name), 1)), &o); s != "\xff\xfe" &&
				!errors.Is(err, ErrName) {
				t.Errorf("%s with %.50q is read: %v", text, s, err)
			}
		}
	}
	var o object
	if err := json.Unmarshal([]byte(`{"token":"","operation":"","node":"","nodes":{"a":1}}`), &o); err != nil || o.Nodes["a"] != 1 {
		t.Errorf("%+v, %v", o, err)
	}
	if text, err := json.Marshal(object{Token: "t", Nodes: map[NodeID]int{"n": 1}}); err != nil || !strings.Contains(string(text),
		`"token":"t"`) || !strings.Contains(string(text), `{"n":1}`) {
		t.Errorf("%s, %v", text, err)
	}
}
