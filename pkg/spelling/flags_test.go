package spelling

import (
	"errors"
	"flag"
	"strings"
	"testing"
)

// TestParse: a mistyped flag is named with the one that may be meant, and without the whole help; help is printed if it is asked for.
func TestParse(t *testing.T) {
	for args, want := range map[string]string{
		"--grpc-prot=1": "the flag --grpc-prot is unknown; did you mean --grpc-port?",
		"-grpc-prot 1":  "the flag --grpc-prot is unknown; did you mean --grpc-port?",
		"--something":   "the flag --something is unknown; manager --help lists all flags",
		"--grpc-port=x": `invalid value "x" for flag -grpc-port: parse error`,
		"--grpc-port=1": "",
		"--help":        "flag: help requested",
	} {
		var out strings.Builder
		f := flag.NewFlagSet("manager", flag.ContinueOnError)
		f.SetOutput(&out)
		f.Int("grpc-port", 1, "the port")
		err := Parse(f, strings.Fields(args))
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s: %v", args, err)
		}
		if help := errors.Is(err, flag.ErrHelp); help != strings.Contains(out.String(), "the port") || !help && out.Len() > 0 {
			t.Errorf("%s prints %q", args, out.String())
		}
	}
}
