package settings

import (
	"bytes"
	"encoding/json"
	"flag"
	"strconv"
	"time"
)

// kind is what a flag takes.
type kind int

const (
	kindString kind = iota
	kindBool
	kindInt
	kindFloat
	kindDuration
	kindList
)

func kindOf(x *flag.Flag) kind {
	if _, ok := x.Value.(List); ok {
		return kindList
	}
	if g, ok := x.Value.(flag.Getter); ok {
		switch g.Get().(type) {
		case bool:
			return kindBool
		case int, int64, uint, uint64:
			return kindInt
		case float64:
			return kindFloat
		case time.Duration:
			return kindDuration
		}
	}
	return kindString
}

// Schema is a JSON schema of the configuration file whose keys are the flags.
func Schema(f *flag.FlagSet) ([]byte, error) {
	props := map[string]any{}
	f.VisitAll(func(x *flag.Flag) {
		if x.Name != ConfigFlag {
			props[x.Name] = property(x)
		}
	})
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(map[string]any{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "configuration file of " + f.Name(),
		"type": "object", "additionalProperties": false, "properties": props})
	return b.Bytes(), err
}

func property(x *flag.Flag) map[string]any {
	p := map[string]any{"description": x.Usage}
	text := []string{"string", "number"}
	var def any
	switch kindOf(x) {
	case kindBool:
		p["type"] = "boolean"
		def = x.DefValue == "true"
	case kindInt:
		p["type"] = "integer"
		if n, err := strconv.ParseInt(x.DefValue, 10, 64); err == nil {
			def = n
		}
	case kindFloat:
		p["type"] = "number"
		if n, err := strconv.ParseFloat(x.DefValue, 64); err == nil {
			def = n
		}
	case kindDuration:
		p["type"], p["pattern"] = "string", `^[-+]?(0|([0-9]*\.?[0-9]+(ns|us|µs|ms|s|m|h))+)$`
		def = x.DefValue
	case kindList:
		p["type"], p["items"] = []string{"array", "string"}, map[string]any{"type": text}
	default:
		p["type"] = text
		if b, ok := x.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
			p["type"] = []string{"string", "boolean"}
		}
		if x.DefValue != "" {
			def = x.DefValue
		}
	}
	if def != nil {
		p["default"] = def
	}
	return p
}
