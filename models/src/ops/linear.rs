//! `Y = X Wᵀ` for weights stored row by row (`[out, in]`, as checkpoints have them), in f32, f16 or bf16.
//!
//! Each value of Y is one sum of 16 running sums, in an order that depends on the length of the rows alone: not on how
//! many rows X has, on the tile a value falls in, or on the number of threads. That is what lets a verified token equal a
//! decoded one. No copy of W is made: a tile of its rows stays in the first-level cache while rows of X pass by.

use super::parallel::{self, Parts};
use super::simd::{self, Kernel, Simd};

/// Columns of Y are handed out in multiples of this: whole tiles for every instruction set.
const COLUMNS: usize = 6;
/// Rows of X that share a walk over W; together they stay in the second-level cache.
const BLOCK_M: usize = 128;
/// Bytes of one row that a tile works on at a time: a tile of W then fits the first-level cache.
const BLOCK_BYTES: usize = 8192;

/// Bytes of W that are worth a task of their own; fewer when they meet several rows.
const TASK_BYTES: usize = 32768;
/// How far ahead of its use W is asked for, in bytes.
const AHEAD: usize = 4096;

/// How rows of one element type are multiplied with rows of another.
pub(crate) trait Format: Copy + 'static {
    type X: Copy + Default + Send + Sync;
    type W: Copy + Default + Send + Sync;
    type XVector<S: Simd>: Copy;
    type WVector<S: Simd>: Copy;
    /// Elements of a row that one step takes.
    const STEP: usize;
    unsafe fn load_x<S: Simd>(from: *const Self::X) -> Self::XVector<S>;
    unsafe fn load_w<S: Simd>(from: *const Self::W) -> Self::WVector<S>;
    /// The last `count` < [`Format::STEP`] elements of a row, zeros behind them.
    unsafe fn tail_x<S: Simd>(from: *const Self::X, count: usize) -> Self::XVector<S>;
    /// As [`Format::tail_x`].
    unsafe fn tail_w<S: Simd>(from: *const Self::W, count: usize) -> Self::WVector<S>;
    unsafe fn step<S: Simd>(acc: S::F, x: Self::XVector<S>, w: Self::WVector<S>) -> S::F;
}

/// f32 rows, f32 weights.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// f32 rows, f16 weights (as bits); products are those of f32.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// bf16 rows and weights (as bits), summed in f32.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

/// A format from its element types, vectors and instructions.
macro_rules! row_format {
    ($name:ident: $x:ty as $xv:ident by $load_x:ident $tail_x:ident, $w:ty as $wv:ident by $load_w:ident $tail_w:ident, $step:literal, |$acc:ident, $a:ident, $b:ident| $do:expr) => {
        // SAFETY of the blocks: pointers and CPU are the caller's to vouch for.
        impl Format for $name {
            type X = $x;
            type W = $w;
            type XVector<S: Simd> = S::$xv;
            type WVector<S: Simd> = S::$wv;
            const STEP: usize = $step;
            #[inline(always)]
            unsafe fn load_x<S: Simd>(from: *const $x) -> S::$xv {
                unsafe { S::$load_x(from) }
            }
            #[inline(always)]
            unsafe fn load_w<S: Simd>(from: *const $w) -> S::$wv {
                unsafe { S::$load_w(from) }
            }
            #[inline(always)]
            unsafe fn tail_x<S: Simd>(from: *const $x, count: usize) -> S::$xv {
                unsafe { S::$tail_x(from, count) }
            }
            #[inline(always)]
            unsafe fn tail_w<S: Simd>(from: *const $w, count: usize) -> S::$wv {
                unsafe { S::$tail_w(from, count) }
            }
            #[inline(always)]
            unsafe fn step<S: Simd>($acc: S::F, $a: S::$xv, $b: S::$wv) -> S::F {
                unsafe { $do }
            }
        }
    };
}

row_format!(F32: f32 as F by load load_some, f32 as F by load load_some, 16, |acc, x, w| S::fma(x, w, acc));
row_format!(F16: f32 as F by load load_some, u16 as F by load_f16 load_some_f16, 16, |acc, x, w| S::fma(x, w, acc));
row_format!(Bf16: u16 as B by load_bf16 load_some_bf16, u16 as B by load_bf16 load_some_bf16, 32, |acc, x, w| S::dot_bf16(acc, x, w));

/// The sizes of one product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Rows of X.
    pub rows: usize,
    /// Length of the rows of X and of W.
    pub width: usize,
    /// Rows of W.
    pub out: usize,
}

/// `y = x wᵀ`: `x` is `[rows, width]`, `w` is `[out, width]`, `y` is `[rows, out]`, all without gaps.
///
/// # Panics
/// When a slice is not as long as the sizes say.
pub(crate) fn linear<T: Format>(sizes: Sizes, x: &[T::X], w: &[T::W], y: &mut [f32]) {
    let Sizes { rows, width, out } = sizes;
    assert_eq!(x.len(), rows * width, "rows of X");
    assert_eq!(w.len(), out * width, "rows of W");
    assert_eq!(y.len(), rows * out, "rows of Y");
    if rows == 0 || out == 0 || width == 0 {
        return;
    }
    let row_blocks = rows.div_ceil(BLOCK_M);
    let columns = columns_per_task(sizes, size_of::<T::W>());
    let column_blocks = out.div_ceil(columns);
    let y = Parts::new(y);
    parallel::for_each(row_blocks * column_blocks, |task| {
        // Rows turn fastest: tasks that run together then read the same part of W.
        let (row, column) = (task % row_blocks * BLOCK_M, task / row_blocks * columns);
        let block = Block::<T> {
            sizes,
            x,
            w,
            y: y.pointer(),
            row,
            rows: BLOCK_M.min(rows - row),
            column,
            columns: columns.min(out - column),
        };
        // SAFETY: the slices are as long as the sizes say, the block lies inside them, and no two tasks share a value of y.
        unsafe { simd::run(block) };
    });
}

/// Columns of Y in one task: enough work to be worth handing out, and several tasks for each thread.
fn columns_per_task(sizes: Sizes, element: usize) -> usize {
    let row_blocks = sizes.rows.div_ceil(BLOCK_M);
    // For few rows, reading W is the work: memory gives it fastest in long runs, so each thread gets two parts and no more.
    let (each, most) = if sizes.rows < 8 {
        (2, usize::MAX)
    } else {
        (4, 192)
    };
    let tasks = (each * parallel::threads()).div_ceil(row_blocks);
    let least = (TASK_BYTES / (sizes.width * element * sizes.rows.min(16)).max(1)).max(1);
    let columns = sizes.out.div_ceil(tasks).clamp(least, most.max(least));
    columns.next_multiple_of(COLUMNS)
}

/// One task: `rows` × `columns` values of Y from `row`, `column`.
struct Block<'a, T: Format> {
    sizes: Sizes,
    x: &'a [T::X],
    w: &'a [T::W],
    y: *mut f32,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

impl<T: Format> Kernel for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.sizes.width;
        // The same for every number of rows: a row's sum is over the same pieces in the same order.
        let pieces = (width * size_of::<T::X>()).div_ceil(BLOCK_BYTES).max(1);
        let piece = width.div_ceil(pieces).next_multiple_of(T::STEP);
        if self.rows == 1 {
            // SAFETY: as below.
            return unsafe { self.stream::<S>(piece) };
        }
        for start in (0..width).step_by(piece) {
            let length = piece.min(width - start);
            let mut column = self.column;
            while column < self.column + self.columns {
                // SAFETY: `linear` has checked the slices; tiles stay inside the block.
                column += unsafe {
                    match (S::MANY_REGISTERS, self.column + self.columns - column) {
                        (true, 6..) => self.column_tile::<S, 6>(column, start, length),
                        (false, 2..) => self.column_tile::<S, 2>(column, start, length),
                        _ => self.column_tile::<S, 1>(column, start, length),
                    }
                };
            }
        }
    }
}

impl<T: Format> Block<'_, T> {
    /// One row of X: W is read as one stream, which is how memory gives it fastest.
    #[inline(always)]
    unsafe fn stream<S: Simd>(&self, piece: usize) {
        let Sizes { width, out, .. } = self.sizes;
        // SAFETY: the block lies inside the slices, which are as long as the sizes say.
        unsafe {
            let x = self.x.as_ptr().add(self.row * width);
            let y = self.y.add(self.row * out);
            let mut column = self.column;
            while column < self.column + self.columns {
                let count = 8.min(self.column + self.columns - column);
                let mut sums = [0.0; 8];
                if piece >= width {
                    let mut acc = [S::splat(0.0); 8];
                    for n in 0..count {
                        let w = self.w.as_ptr().add((column + n) * width);
                        acc[n] = dot::<S, T>(x, w, width);
                    }
                    sums = S::sums(acc);
                } else {
                    for n in 0..count {
                        let w = self.w.as_ptr().add((column + n) * width);
                        for start in (0..width).step_by(piece) {
                            let length = piece.min(width - start);
                            let part = S::sum(dot::<S, T>(x.add(start), w.add(start), length));
                            sums[n] = if start > 0 { sums[n] + part } else { part };
                        }
                    }
                }
                std::ptr::copy_nonoverlapping(sums.as_ptr(), y.add(column), count);
                column += 8;
            }
        }
    }

    /// `N` columns from `column`, all rows of the block, over `length` elements from `start`. Returns `N`.
    #[inline(always)]
    unsafe fn column_tile<S: Simd, const N: usize>(
        &self,
        column: usize,
        start: usize,
        length: usize,
    ) -> usize {
        let Sizes { width, out, .. } = self.sizes;
        // SAFETY: the caller's ranges are inside the slices.
        unsafe {
            let w = self.w.as_ptr().add(column * width + start);
            let x = self.x.as_ptr().add(self.row * width + start);
            let place = Place {
                y: self.y.add(self.row * out + column),
                stride: out,
                add: start > 0,
            };
            row_tiles::<S, T, N>(x, width, w, width, length, self.rows, place);
        }
        N
    }
}

/// The running sums of one row of X with one row of W.
#[inline(always)]
unsafe fn dot<S: Simd, T: Format>(x: *const T::X, w: *const T::W, length: usize) -> S::F {
    // SAFETY: passed on to the caller; the last step reads no further than the row.
    unsafe {
        let mut acc = S::splat(0.0);
        let whole = length / T::STEP * T::STEP;
        let mut k = 0;
        while k < whole {
            S::prefetch(w.add(k).cast::<u8>().wrapping_add(AHEAD));
            acc = T::step::<S>(acc, T::load_x::<S>(x.add(k)), T::load_w::<S>(w.add(k)));
            k += T::STEP;
        }
        if whole < length {
            let xv = T::tail_x::<S>(x.add(whole), length - whole);
            let wv = T::tail_w::<S>(w.add(whole), length - whole);
            acc = T::step::<S>(acc, xv, wv);
        }
        acc
    }
}

/// Where a tile's values go.
#[derive(Clone, Copy)]
struct Place {
    y: *mut f32,
    stride: usize,
    /// Whether to add to what is there.
    add: bool,
}

/// All rows against `N` rows of W.
#[inline(always)]
unsafe fn row_tiles<S: Simd, T: Format, const N: usize>(
    x: *const T::X,
    x_stride: usize,
    w: *const T::W,
    w_stride: usize,
    length: usize,
    rows: usize,
    place: Place,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: passed on to the caller.
        row += unsafe {
            let x = x.add(row * x_stride);
            let place = Place {
                y: place.y.add(row * place.stride),
                ..place
            };
            match (S::MANY_REGISTERS, rows - row) {
                (_, 1) => tile::<S, T, 1, N>(x, x_stride, w, w_stride, length, place),
                (_, 2) => tile::<S, T, 2, N>(x, x_stride, w, w_stride, length, place),
                (true, 4..) => tile::<S, T, 4, N>(x, x_stride, w, w_stride, length, place),
                _ => tile::<S, T, 3, N>(x, x_stride, w, w_stride, length, place),
            }
        };
    }
}

/// `M` rows of X against `N` rows of W. Returns `M`.
#[inline(always)]
unsafe fn tile<S: Simd, T: Format, const M: usize, const N: usize>(
    x: *const T::X,
    x_stride: usize,
    w: *const T::W,
    w_stride: usize,
    length: usize,
    place: Place,
) -> usize {
    // SAFETY: passed on to the caller; the last step reads no further than the row.
    unsafe {
        let mut acc = [[S::splat(0.0); N]; M];
        let whole = length / T::STEP * T::STEP;
        let mut k = 0;
        while k < whole {
            let mut wv = [T::load_w::<S>(w.add(k)); N];
            for n in 1..N {
                wv[n] = T::load_w::<S>(w.add(n * w_stride + k));
            }
            for m in 0..M {
                let xv = T::load_x::<S>(x.add(m * x_stride + k));
                for n in 0..N {
                    acc[m][n] = T::step::<S>(acc[m][n], xv, wv[n]);
                }
            }
            k += T::STEP;
        }
        // A rank is seldom a multiple of a vector: a row's end is loaded once for the whole tile, as any other step is.
        if whole < length {
            let rest = length - whole;
            let mut wv = [T::tail_w::<S>(w.add(whole), rest); N];
            for n in 1..N {
                wv[n] = T::tail_w::<S>(w.add(n * w_stride + whole), rest);
            }
            for m in 0..M {
                let xv = T::tail_x::<S>(x.add(m * x_stride + whole), rest);
                for n in 0..N {
                    acc[m][n] = T::step::<S>(acc[m][n], xv, wv[n]);
                }
            }
        }
        let mut i = 0;
        while i < M * N {
            let mut group = [S::splat(0.0); 8];
            for j in 0..8.min(M * N - i) {
                group[j] = acc[(i + j) / N][(i + j) % N];
            }
            let sums = S::sums(group);
            for j in 0..8.min(M * N - i) {
                let (m, n) = ((i + j) / N, (i + j) % N);
                let to = place.y.add(m * place.stride + n);
                *to = if place.add { *to + sums[j] } else { sums[j] };
            }
            i += 8;
        }
    }
    M
}
