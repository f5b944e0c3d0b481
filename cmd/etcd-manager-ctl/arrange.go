package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// arrange rewrites a command line as older tools accept it into the one that cobra reads: long flags with a single dash get
// the second one, and flags that stand before the command move behind it, so that a command's own flags may
// stand there too. Flags that older tools
// have for all commands are taken out where the command doesn't use them, and returned.
func arrange(root *cobra.Command, args []string) (arranged, ignored []string) {
	flags := map[string]*pflag.Flag{}
	collect := func(f *pflag.Flag) {
		flags[f.Name] = f
		if f.Shorthand != "" {
			flags[f.Shorthand] = f
		}
	}
	root.PersistentFlags().VisitAll(collect)
	var all func(c *cobra.Command)
	all = func(c *cobra.Command) {
		c.Flags().VisitAll(collect)
		c.PersistentFlags().VisitAll(collect)
		for _, sub := range c.Commands() {
			all(sub)
		}
	}
	// Flags of one name may want a value in one command and none in another, so it is the command's own that count.
	cmd := named(root, args)
	all(cmd)
	front, rest := []string{}, []string{}
	command := ""
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i:]...)
			break
		}
		f, arg := known(flags, arg)
		if name, hasValue := flagOf(arg); command == "" && slices.Contains(everywhere(), name) && cmd.Flags().Lookup(name) == nil {
			ignored = append(ignored, name)
			if !hasValue && i+1 < len(args) {
				i++
			}
			continue
		}
		switch {
		case f == nil && command == "" && !strings.HasPrefix(arg, "-"):
			command = arg
			continue
		case command == "":
			front = append(front, arg)
		default:
			rest = append(rest, arg)
		}
		if f != nil && f.NoOptDefVal == "" && !strings.Contains(arg, "=") && i+1 < len(args) {
			// The value is the next argument, whatever it looks like.
			i++
			if command == "" {
				front = append(front, args[i])
			} else {
				rest = append(rest, args[i])
			}
		}
	}
	if command == "" {
		return append(front, rest...), ignored
	}
	return append(append([]string{command}, front...), rest...), ignored
}

// everywhere are the flags that an older tool takes before every command, though only one uses them.
func everywhere() []string { return []string{"member-count", "etcd-version"} }

// flagOf is the name of the flag that an argument looks like, and whether its value is in it; empty if it looks like none.
func flagOf(arg string) (name string, hasValue bool) {
	if !strings.HasPrefix(arg, "-") {
		return "", false
	}
	name, _, hasValue = strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
	return name, hasValue
}

// named is the command that a command line names, or the root if none is known.
func named(root *cobra.Command, args []string) *cobra.Command {
	for _, arg := range args {
		for _, c := range root.Commands() {
			if c.Name() == arg || c.HasAlias(arg) {
				return c
			}
		}
	}
	return root
}

// known finds the flag that an argument sets, if it is one, and spells a long flag with two dashes. Short flags with
// their value attached (-ojson) are left to cobra.
func known(flags map[string]*pflag.Flag, arg string) (*pflag.Flag, string) {
	name := strings.TrimPrefix(arg, "-")
	if name == arg {
		return nil, arg
	}
	double := strings.HasPrefix(name, "-")
	name = strings.TrimPrefix(name, "-")
	name, _, _ = strings.Cut(name, "=")
	f := flags[name]
	if f == nil || double {
		return f, arg
	}
	if len(name) > 1 {
		arg = "-" + arg
	}
	return f, arg
}
