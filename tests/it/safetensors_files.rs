//! Files written by the `safetensors` crate, the format's own library, are read as they are.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use vrust::backend::RowSource;
use vrust::weights::{Checkpoint, TensorRows};

use crate::support::folder::TempDir;

#[test]
fn every_row_of_every_type_comes_back() {
    let values: Vec<f32> = (0..12).map(|i| i as f32 * 0.5 - 3.0).collect();
    let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let tensors = [("a", Dtype::F32, &f32s), ("b", Dtype::F16, &f16s), ("c", Dtype::BF16, &bf16s)];
    let views = tensors
        .map(|(name, dtype, bytes)| (name, TensorView::new(dtype, vec![4, 3], bytes).unwrap()));
    let folder = TempDir::new();
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().count(), 3);
    for name in ["a", "b", "c"] {
        let rows = TensorRows::new(checkpoint.get(name).unwrap()).unwrap();
        assert_eq!((rows.rows(), rows.cols()), (4, 3));
        let mut raw = vec![0; 2 * 3 * rows.dtype().size()];
        rows.read_rows(1..3, &mut raw).unwrap();
        let mut read = [0.0; 6];
        rows.dtype().widen(&raw, &mut read);
        assert_eq!(read, values[3..9], "tensor {name}");
    }
}
