package settings

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// ConfigFlag is the flag that names the configuration file.
const ConfigFlag = "config"

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// List is a flag that may be repeated. In a configuration file it takes a list.
type List interface {
	flag.Value
	Values() []string
}

// Sources says where the values of flags come from.
type Sources struct {
	// Path is the configuration file; empty if there is none.
	Path  string
	lines map[string]int  // of what the file sets, by flag
	given map[string]bool // on the command line
}

// FromFile sets, from the file that the flag --config names, every flag that the command line doesn't give. f has been parsed. All that is
// wrong is in the error, each with the file's line; what is right is set also then.
func FromFile(f *flag.FlagSet) (Sources, error) {
	s := Sources{lines: map[string]int{}, given: map[string]bool{}}
	f.Visit(func(x *flag.Flag) { s.given[x.Name] = true })
	if x := f.Lookup(ConfigFlag); x != nil {
		s.Path = x.Value.String()
	}
	if s.Path == "" {
		return s, nil
	}
	entries, err := readConfig(s.Path)
	if err != nil {
		return s, err
	}
	var errs []error
	for _, e := range entries {
		if err := s.set(f, e); err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", s.Path, e.line, err))
		}
	}
	return s, errors.Join(errs...)
}

// entry is one line of a configuration file, with its values.
type entry struct {
	name   string
	line   int
	values []*yaml.Node
	list   bool
}

func (s *Sources) set(f *flag.FlagSet, e entry) error {
	x := f.Lookup(e.name)
	if x == nil || e.name == ConfigFlag {
		return unknownKey(f, e.name)
	}
	if first, twice := s.lines[e.name]; twice {
		return fmt.Errorf("%s is there a second time; it is in line %d already", e.name, first)
	}
	s.lines[e.name] = e.line
	var texts []string
	for _, v := range e.values {
		text, err := textOf(x, v)
		if err != nil {
			return err
		}
		texts = append(texts, text)
	}
	if _, ok := x.Value.(List); e.list && !ok {
		return fmt.Errorf("%s takes one value, not a list", e.name)
	}
	if s.given[e.name] {
		return nil
	}
	for _, text := range texts {
		if err := f.Set(e.name, text); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

// textOf is what would stand on the command line for a value.
func textOf(x *flag.Flag, v *yaml.Node) (string, error) {
	b, isBool := x.Value.(interface{ IsBoolFlag() bool })
	isBool = isBool && b.IsBoolFlag()
	switch {
	case v.Kind == yaml.AliasNode || v.Anchor != "":
		return "", fmt.Errorf("%s: anchors and aliases can't be used here; write the value itself", x.Name)
	case v.Kind != yaml.ScalarNode:
		return "", fmt.Errorf("%s takes a value or a list of values, and no mappings", x.Name)
	case v.Tag == "!!null":
		return "", fmt.Errorf(`%s has no value; write "" for an empty one, or remove the line for the default`, x.Name)
	case v.Tag == "!!bool" && !isBool:
		return "", fmt.Errorf("%s takes no truth value; put the text in quotes if it is meant", x.Name)
	case !slices.Contains([]string{"!!str", "!!bool", "!!int", "!!float", "!!timestamp"}, v.Tag):
		return "", fmt.Errorf("%s: a value of the type %s can't be used here", x.Name, cluster.Shown(v.Tag, 40))
	}
	return v.Value, nil
}

// unknownKey names the flag that may be meant.
func unknownKey(f *flag.FlagSet, name string) error {
	var names []string
	f.VisitAll(func(x *flag.Flag) { names = append(names, x.Name) })
	shown := cluster.Shown(name, 60)
	bare := strings.ReplaceAll(strings.TrimLeft(name, "-"), "_", "-")
	switch {
	case name == ConfigFlag:
		return errors.New("config can't be set in the file itself")
	case bare != name && slices.Contains(names, bare):
		return fmt.Errorf("%s is unknown; did you mean %s?", shown, bare)
	}
	if near := spelling.Closest(name, names, 1); len(near) > 0 {
		return fmt.Errorf("%s is unknown; did you mean %s?", shown, near[0])
	}
	return fmt.Errorf("%s is unknown; every key is the name of a flag, and %s --help lists all flags", shown, f.Name())
}

// readConfig reads a file of "name: value" lines. No error repeats a value: somebody may have named a file with secrets by mistake.
func readConfig(path string) ([]entry, error) {
	data, err := readTrusted(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil // nothing but comments
	case err != nil:
		return nil, fmt.Errorf("%s: it isn't YAML, or only a part of it is there: %s", path, yamlProblem(err))
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: it has more than one document; one file has one", path)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: it must have lines like cluster-name: main, each with the name of a flag", path, root.Line)
	}
	var entries []entry
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, v := root.Content[i], root.Content[i+1]
		e := entry{name: key.Value, line: key.Line, values: []*yaml.Node{v}}
		if key.Kind != yaml.ScalarNode || key.Anchor != "" {
			return nil, fmt.Errorf("%s:%d: a key must be the name of a flag", path, key.Line)
		}
		if v.Kind == yaml.SequenceNode {
			e.values, e.list = v.Content, true
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// yamlProblem is the parser's message without its own name. Only one about an anchor repeats something of the file.
func yamlProblem(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if before, _, ok := strings.Cut(text, "unknown anchor"); ok {
		text = before + "anchors and aliases can't be used here"
	}
	return cluster.Shown(text, 100)
}

// readTrusted reads a file that nobody can have written but root and the user who runs this program: whoever writes a configuration
// decides what root runs.
func readTrusted(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	if why := othersWrite(path, info); why != "" {
		return nil, fmt.Errorf("%s and decide what this program does; only its user and root may: chown it, and chmod go-w", why)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxConfig:
		return nil, fmt.Errorf("%s has more than %d bytes; a configuration file isn't that long", path, maxConfig)
	}
	return data, nil
}
