package process

import (
	"fmt"
	"os"
	"os/exec"
)

// Nothing manages an etcd here, so nothing is run but what the person who calls the tool names.

func checkRoot(dir string) error {
	_, err := os.Stat(dir)
	return err
}

func openTrusted(path string) (*os.File, exeID, error) {
	return nil, exeID{}, fmt.Errorf("%s: %w", path, ErrUntrusted)
}

func runFile(argv []string, _ *os.File, _ ...*os.File) *exec.Cmd {
	return exec.Command(argv[0], argv[1:]...)
}
