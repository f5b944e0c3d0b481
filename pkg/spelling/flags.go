package spelling

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// unknownFlag is how an error of package flag begins that is about a flag that doesn't exist.
const unknownFlag = "flag provided but not defined: -"

// Parse parses the flags of a program. Asked for help, it prints all flags and returns flag.ErrHelp. Other errors it returns without
// printing anything; one about a flag that doesn't exist names the one that may be meant.
func Parse(f *flag.FlagSet, args []string) error {
	out, usage := f.Output(), f.Usage
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	err := f.Parse(args)
	f.SetOutput(out)
	f.Usage = usage
	switch {
	case errors.Is(err, flag.ErrHelp) && usage != nil:
		usage()
	case errors.Is(err, flag.ErrHelp):
		f.PrintDefaults()
	case err != nil:
		return Unknown(f, err)
	}
	return err
}

// Unknown makes a better error of one about a flag that doesn't exist; others are returned as they are.
func Unknown(f *flag.FlagSet, err error) error {
	name, ok := strings.CutPrefix(err.Error(), unknownFlag)
	if !ok {
		return err
	}
	var names []string
	f.VisitAll(func(x *flag.Flag) { names = append(names, x.Name) })
	err = fmt.Errorf("the flag --%s is unknown", name)
	if near := Closest(name, names, 1); len(near) > 0 {
		return fmt.Errorf("%w; did you mean --%s?", err, near[0])
	}
	return fmt.Errorf("%w; %s --help lists all flags", err, f.Name())
}
