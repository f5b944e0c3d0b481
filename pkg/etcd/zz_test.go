package etcd
import ("testing";"path/filepath";"os";"time";"fmt")
func BenchmarkZApply(b *testing.B){
	dir := b.TempDir()
	src := os.Getenv("ETCD_TEST_SNAPSHOT")
	path := filepath.Join(dir,"x")
	copyFile(b, src, path)
	for b.Loop() {
		e := &edits{}
		e.put([]byte("meta"), []byte("x"), []byte("y"))
		t0 := time.Now()
		must(b, e.apply(path))
		fmt.Println("apply", time.Since(t0))
	}
}
func BenchmarkZScan(b *testing.B){
	src := os.Getenv("ETCD_TEST_SNAPSHOT")
	for b.Loop() {
		_, _, err := proveDB(b.Context(), src, ProveOptions{SkipHash:true})
		must(b, err)
	}
}
func BenchmarkZChild(b *testing.B){
	for b.Loop() {
		t0 := time.Now()
		runSelf(b.Context(), nil, self(b), ProveSubcommand, "/nonexist")
		fmt.Println("child", time.Since(t0))
	}
}
