package settings

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// ReadEnv reads a file of KEY=VALUE lines; blank lines and comments are passed over.
func ReadEnv(path string) (map[string]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer file.Close()
	vars := map[string]string{}
	s := bufio.NewScanner(file)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok || k == "" {
			// What stands there may be a secret.
			return nil, fmt.Errorf("--env-file %s: line %d is not KEY=VALUE", path, n)
		}
		vars[k] = v
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("--env-file %s: %w", path, err)
	}
	return vars, nil
}
