package settings

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
)

// Command is what "config" of a program does.
type Command struct {
	// Program is its name, Example a configuration file of it.
	Program, Example string
	// Flags are what the schema describes.
	Flags func() *flag.FlagSet
	// Read reads flags, file and environment as the program does. Errors don't keep it from telling what it knows; flag.ErrHelp, as the
	// first one, asks for help.
	Read func(args []string) ([]Setting, []Variable, []error)
}

const commandHelp = `%[1]s config show prints what is in force with these flags and the file of --config, and where each value comes from. What
may be a secret isn't printed. %[1]s config schema prints a JSON schema of that file.

usage: %[1]s config show [flags of %[1]s]
       %[1]s config schema

example: %[1]s config show --config=%[2]s

The exit code is 0, or 2 if something is wrong, which is said behind the values.
`

// Run carries it out with the arguments behind "config", and returns the exit code: 0, 1 if the result can't be printed, 2 if something is
// wrong with what was given.
func (c Command) Run(args []string, out, errOut io.Writer) int {
	help := fmt.Sprintf(commandHelp, c.Program, c.Example)
	var err error
	switch {
	case len(args) > 0 && args[0] == "show":
		return c.show(args[1:], help, out, errOut)
	case len(args) == 1 && args[0] == "schema":
		var data []byte
		if data, err = Schema(c.Flags()); err == nil {
			_, err = out.Write(data)
		}
	case len(args) == 1 && slices.Contains([]string{"help", "--help", "-h"}, args[0]):
		_, err = fmt.Fprint(out, help)
	default:
		fmt.Fprint(errOut, help)
		return 2
	}
	return c.printed(err, errOut)
}

func (c Command) show(args []string, help string, out, errOut io.Writer) int {
	list, env, errs := c.Read(args)
	if len(errs) > 0 && errors.Is(errs[0], flag.ErrHelp) {
		_, err := fmt.Fprint(out, help)
		return c.printed(err, errOut)
	}
	if list != nil {
		if err := Show(out, list, env); err != nil {
			return c.printed(err, errOut)
		}
	}
	for _, err := range errs {
		fmt.Fprintf(errOut, "%s: %v\n", c.Program, err)
	}
	if len(errs) > 0 {
		return 2
	}
	return 0
}

func (c Command) printed(err error, errOut io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(errOut, "%s config: print: %v\n", c.Program, err)
	return 1
}
