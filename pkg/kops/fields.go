package kops

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// fields reads one object of the file and remembers what was asked for, so that the rest is what nobody knows.
type fields struct {
	p     *parser
	path  string
	m     map[string]any
	known map[string]bool
}

func (p *parser) fields(path string, m map[string]any) *fields {
	return &fields{p: p, path: path, m: m, known: map[string]bool{}}
}

func (f *fields) child(name string) string {
	if f.path == "" {
		return name
	}
	return f.path + "." + name
}

// take returns the value of the first of the spellings that is there.
func (f *fields) take(names ...string) (any, string) {
	for _, n := range names {
		f.known[n] = true
	}
	for _, n := range names {
		if v := f.m[n]; v != nil {
			return v, f.child(n)
		}
	}
	return nil, ""
}

// text returns a string, number or boolean as text.
func (f *fields) text(names ...string) string {
	switch v, path := f.take(names...); v := v.(type) {
	case nil:
		return ""
	case string:
		return strings.TrimSpace(v)
	case json.Number, bool:
		return fmt.Sprint(v)
	default:
		f.p.fail(path, "it must be a text")
		return ""
	}
}

func (f *fields) texts(names ...string) []string {
	v, path := f.take(names...)
	list, ok := v.([]any)
	if v != nil && !ok {
		f.p.fail(path, "it must be a list")
	}
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprint(e))
	}
	return out
}

func (f *fields) number(def int, names ...string) int {
	v, path := f.take(names...)
	if v == nil {
		return def
	}
	n, err := strconv.Atoi(fmt.Sprint(v))
	if err != nil {
		f.p.fail(path, "%v is not a whole number", v)
	}
	return n
}

func (f *fields) boolean(names ...string) *bool {
	v, path := f.take(names...)
	if v == nil {
		return nil
	}
	b, ok := v.(bool)
	if !ok {
		f.p.fail(path, "%v is neither true nor false", v)
	}
	return &b
}

func (f *fields) object(names ...string) *fields {
	v, path := f.take(names...)
	m, ok := v.(map[string]any)
	if v != nil && !ok {
		f.p.fail(path, "it must have fields of its own")
	}
	if path == "" {
		path = f.child(names[0])
	}
	return f.p.fields(path, m)
}

func (f *fields) objects(names ...string) []*fields {
	v, path := f.take(names...)
	list, ok := v.([]any)
	if v != nil && !ok {
		f.p.fail(path, "it must be a list")
	}
	var out []*fields
	for i, e := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		m, ok := e.(map[string]any)
		if !ok {
			f.p.fail(at, "it must have fields of its own")
		}
		if name, ok := m["name"].(string); ok {
			at = fmt.Sprintf("%s[%s]", path, name)
		}
		out = append(out, f.p.fields(at, m))
	}
	return out
}

func (f *fields) stringMap(names ...string) map[string]string {
	o := f.object(names...)
	out := map[string]string{}
	for k := range o.m {
		out[k] = o.text(k)
	}
	return out
}

// rest returns what nobody asked for, and warns of it.
func (f *fields) rest() map[string]any {
	out := map[string]any{}
	for _, k := range slices.Sorted(maps.Keys(f.m)) {
		if f.known[k] {
			continue
		}
		out[k] = f.m[k]
		hint := ""
		for _, n := range slices.Sorted(maps.Keys(f.known)) {
			if strings.EqualFold(n, k) {
				hint = fmt.Sprintf("; did you mean %s?", n)
			}
		}
		f.p.warn("%s is unknown and changes nothing%s", f.child(k), hint)
	}
	return out
}
