// Command proto generates the Go code of protos/, or with -check proves that it is current.
//
// It needs nothing but Go: the compiler is a Go module, and so are the two plugins, all pinned in this
// directory's go.mod. Run it with "make generate" and "make generate-check", or by hand in this directory
// with "go run . [-check]".
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

var plugins = []string{"protoc-gen-go", "protoc-gen-go-grpc"}

func main() {
	root := flag.String("root", "../../../protos", "directory of the .proto files")
	check := flag.Bool("check", false, "write nothing; fail if the generated code is not current")
	flag.Parse()
	if err := run(context.Background(), *root, *check); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string, check bool) error {
	want, err := generate(ctx, root)
	if err != nil {
		return err
	}
	have, err := readGenerated(root)
	if err != nil {
		return err
	}
	var stale []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if bytes.Equal(have[name], want[name]) {
			continue
		}
		stale = append(stale, name)
		if !check {
			if err := os.WriteFile(filepath.Join(root, name), want[name], 0o644); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if want[name] != nil {
			continue
		}
		stale = append(stale, name)
		if !check {
			if err := os.Remove(filepath.Join(root, name)); err != nil {
				return err
			}
		}
	}
	if len(stale) == 0 {
		fmt.Printf("generated code is current (%d files)\n", len(want))
		return nil
	}
	if check {
		return fmt.Errorf("generated code is not current, run \"make generate\": %s", strings.Join(stale, ", "))
	}
	fmt.Printf("written or removed: %s\n", strings.Join(stale, ", "))
	return nil
}

// readGenerated returns all generated files below root by their relative name.
func readGenerated(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".pb.go") {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = os.ReadFile(path)
		return err
	})
	return files, err
}

// generate compiles every .proto file below root and runs the plugins on the result.
func generate(ctx context.Context, root string) (map[string][]byte, error) {
	var sources []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		rel, err := filepath.Rel(root, path)
		sources = append(sources, filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(sources) == 0 {
		return nil, fmt.Errorf("no .proto files in %s", root)
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	compiled, err := compiler.Compile(ctx, sources...)
	if err != nil {
		return nil, fmt.Errorf("compile: %w", err)
	}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: sources, Parameter: proto.String("paths=source_relative")}
	added := map[string]bool{}
	for _, f := range compiled {
		request.ProtoFile = appendWithImports(request.ProtoFile, f, added)
	}
	files := map[string][]byte{}
	for _, plugin := range plugins {
		if err := runPlugin(ctx, plugin, request, files); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// appendWithImports puts a file behind those that it imports, as plugins expect it.
func appendWithImports(all []*descriptorpb.FileDescriptorProto, f protoreflect.FileDescriptor, added map[string]bool) []*descriptorpb.FileDescriptorProto {
	if added[f.Path()] {
		return all
	}
	added[f.Path()] = true
	for i := range f.Imports().Len() {
		all = appendWithImports(all, f.Imports().Get(i).FileDescriptor, added)
	}
	return append(all, protoutil.ProtoFromFileDescriptor(f))
}

func runPlugin(ctx context.Context, plugin string, request *pluginpb.CodeGeneratorRequest, files map[string][]byte) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", plugin, err)
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return fmt.Errorf("%s: read its answer: %w", plugin, err)
	}
	if response.Error != nil {
		return fmt.Errorf("%s: %w", plugin, errors.New(response.GetError()))
	}
	for _, f := range response.File {
		files[f.GetName()] = []byte(f.GetContent())
	}
	return nil
}
