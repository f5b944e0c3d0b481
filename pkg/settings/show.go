package settings

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Setting is one flag: what it is set to, and by what.
type Setting struct {
	Name string
	// Values are its texts as on the command line; one that isn't a list has exactly one.
	Values []string
	// Source is "flag", "default", or the file with the line.
	Source string

	kind kind
}

// Settings are all flags but --config and --help, in the order of their names.
func (s Sources) Settings(f *flag.FlagSet) []Setting {
	var all []Setting
	f.VisitAll(func(x *flag.Flag) {
		if x.Name == ConfigFlag {
			return
		}
		v := Setting{Name: x.Name, kind: kindOf(x), Source: "default"}
		if l, ok := x.Value.(List); ok {
			v.Values = l.Values()
		} else {
			v.Values = []string{x.Value.String()}
		}
		line, inFile := s.lines[x.Name]
		switch {
		case s.given[x.Name]:
			v.Source = "flag"
		case inFile:
			v.Source = fmt.Sprintf("%s:%d", s.Path, line)
		case v.kind != kindList && v.Values[0] != x.DefValue:
			v.Source = "default with --dev"
		}
		all = append(all, v)
	})
	return all
}

// Variable is one of the environment.
type Variable struct{ Name, Value, Source string }

// Show prints settings as a configuration file, each with where its value comes from, and variables of the environment as comments. What
// may be a secret isn't printed.
func Show(w io.Writer, all []Setting, env []Variable) error {
	var lines [][2]string
	for _, s := range all {
		var texts []string
		for _, v := range s.Values {
			texts = append(texts, s.kind.yaml(Hide(s.Name, v)))
		}
		text := strings.Join(texts, ", ")
		if s.kind == kindList {
			text = "[" + text + "]"
		}
		lines = append(lines, [2]string{s.Name + ": " + text, s.Source})
	}
	for _, v := range env {
		lines = append(lines, [2]string{"# " + v.Name + "=" + cluster.Shown(v.Value, 500), v.Source})
	}
	width := 0
	for _, l := range lines {
		width = max(width, min(len(l[0]), 60))
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(w, "%-*s  # %s\n", width, l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

// plain are texts that need no quotes in YAML: they are taken for nothing but text.
var plain = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9/._-]*$`)

// yaml writes a value. JSON's strings are YAML's.
func (k kind) yaml(text string) string {
	_, err := time.ParseDuration(text)
	switch {
	case k == kindBool, k == kindInt, k == kindFloat, k == kindDuration && err == nil:
		return text
	case plain.MatchString(text) && !word.MatchString(text):
		return text
	}
	data, err := json.Marshal(text)
	if err != nil {
		return `""`
	}
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(data))
}

// word are plain texts that YAML, of one version or another, takes for something else.
var word = regexp.MustCompile(`^(?i:true|false|yes|no|on|off|y|n|null)$`)

// Hide is a value of a flag without what may be a secret: user and password, parameters, and the path of a webhook.
func Hide(name, value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Scheme == "" || u.Host == "" {
		if strings.Contains(value, "://") && err != nil {
			return "(hidden)"
		}
		return value
	}
	if name == "webhook-url" {
		return u.Scheme + "://" + u.Host + "/(hidden)"
	}
	changed := false
	if u.User != nil {
		u.User, changed = nil, true
	}
	if u.RawQuery != "" {
		u.RawQuery, changed = "", true
	}
	if !changed {
		return value
	}
	return u.String() + " (user and parameters hidden)"
}

// secretName are names of variables whose values are secrets.
var secretName = regexp.MustCompile(`(?i)KEY|SECRET|TOKEN|PASSW|CREDENTIAL`)

// HideVariable is the value of a variable without what may be a secret.
func HideVariable(name, value string) string {
	if secretName.MatchString(name) {
		return "(hidden)"
	}
	return Hide(name, value)
}
