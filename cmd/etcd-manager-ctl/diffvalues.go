package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// diffKey is a key that differs, for programs.
type diffKey struct {
	Key       string               `json:"key"`
	Change    operator.DiffKind    `json:"change"`
	Kind      string               `json:"kind,omitempty"`
	Namespace string               `json:"namespace,omitempty"`
	Name      string               `json:"name,omitempty"`
	SameValue bool                 `json:"sameValue,omitempty"`
	OldRev    int64                `json:"oldRevision,omitempty"`
	NewRev    int64                `json:"newRevision,omitempty"`
	Old       *operator.ShownValue `json:"old,omitempty"`
	New       *operator.ShownValue `json:"new,omitempty"`
}

func diffKeyOf(e operator.DiffEntry, o diffOptions) diffKey {
	k := diffKey{Key: string(e.Key), Change: e.Kind, SameValue: e.SameValue}
	if object, ok := kube.ObjectOf(k.Key); ok {
		k.Kind, k.Namespace, k.Name = object.Kind, object.Namespace, object.Name
	}
	shown := func(v *operator.DiffValue) (int64, *operator.ShownValue) {
		if v == nil {
			return 0, nil
		}
		if !o.values {
			return v.Revision, nil
		}
		s := operator.ShowValue(e.Key, v.Value, o.secrets)
		return v.Revision, &s
	}
	k.OldRev, k.Old = shown(e.Old)
	k.NewRev, k.New = shown(e.New)
	return k
}

const (
	// fieldsShown is how many fields of one object are printed, shownLength how many bytes of a value.
	fieldsShown = 20
	shownLength = 200
)

// diffValuesText shows a key's values: of two JSON objects the fields that differ, else both values.
func diffValuesText(e operator.DiffEntry, secrets bool) string {
	var old, now *operator.ShownValue
	var b strings.Builder
	if e.Old != nil {
		s := operator.ShowValue(e.Key, e.Old.Value, secrets)
		old = &s
	}
	if e.New != nil {
		s := operator.ShowValue(e.Key, e.New.Value, secrets)
		now = &s
	}
	if old != nil && now != nil && old.JSON != nil && now.JSON != nil {
		lines := jsonLines(old.JSON, now.JSON)
		for i, line := range lines {
			if i == fieldsShown {
				fmt.Fprintf(&b, "    … and %d more fields (-o json shows both values)\n", len(lines)-fieldsShown)
				break
			}
			fmt.Fprintf(&b, "    %s\n", line)
		}
		return b.String()
	}
	if old != nil {
		fmt.Fprintf(&b, "    was:  %s\n", shownText(*old))
	}
	if now != nil {
		fmt.Fprintf(&b, "    is:   %s\n", shownText(*now))
	}
	return b.String()
}

// shownText is a value in one line.
func shownText(v operator.ShownValue) string {
	switch {
	case v.Hidden:
		return fmt.Sprintf("hidden, %s (--show-secrets shows it)", ui.Size(int64(v.Bytes)))
	case v.JSON != nil:
		return clipped(string(v.JSON))
	case v.Form == "text":
		return clipped(ui.Readable(v.Text))
	}
	text := v.Form
	if v.Type != "" {
		text += " " + v.Type
	}
	return fmt.Sprintf("%s, %s (-o json shows it in base64)", text, ui.Size(int64(v.Bytes)))
}

func clipped(s string) string {
	if len(s) <= shownLength {
		return s
	}
	return strings.ToValidUTF8(s[:shownLength], "") + "…"
}

// jsonLines are the fields in which two JSON values differ, sorted by their paths.
func jsonLines(old, now []byte) []string {
	was, is := map[string]string{}, map[string]string{}
	flatten("", old, was)
	flatten("", now, is)
	var lines []string
	for path, v := range was {
		n, there := is[path]
		switch {
		case !there:
			lines = append(lines, fmt.Sprintf("%s: %s → (none)", path, clipped(v)))
		case n != v:
			lines = append(lines, fmt.Sprintf("%s: %s → %s", path, clipped(v), clipped(n)))
		}
	}
	for path, v := range is {
		if _, there := was[path]; !there {
			lines = append(lines, fmt.Sprintf("%s: (none) → %s", path, clipped(v)))
		}
	}
	slices.Sort(lines)
	return lines
}

// flatten puts the leaves of a JSON value under their paths.
func flatten(path string, raw json.RawMessage, out map[string]string) {
	var object map[string]json.RawMessage
	var list []json.RawMessage
	switch {
	case json.Unmarshal(raw, &object) == nil && len(object) > 0:
		for name, v := range object {
			flatten(strings.TrimPrefix(path+"."+name, "."), v, out)
		}
	case json.Unmarshal(raw, &list) == nil && len(list) > 0:
		for i, v := range list {
			flatten(fmt.Sprintf("%s[%d]", path, i), v, out)
		}
	default:
		if path == "" {
			path = "value"
		}
		out[path] = string(raw)
	}
}
