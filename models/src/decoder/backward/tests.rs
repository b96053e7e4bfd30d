//! The way back against Burn's autodiff, on small random decoders.

use burn::module::{Module, Param};
use burn::nn::{EmbeddingConfig, Linear, RmsNorm, RmsNormConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};

use super::*;
use crate::cache::CacheFormat;
use crate::config::{FAMILIES, ModelConfig, RopeScaling};
use crate::decoder::{Attention, FeedForward, Rotary, TokenEmbedding};
use crate::projection::ProjectionGroup;

const WIDTH: usize = 40;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 12;
const NEURONS: usize = 72;

struct Kind {
    bias: bool,
    qk_norm: bool,
    scaling: RopeScaling,
}

fn kinds() -> [Kind; 3] {
    let kind = |bias, qk_norm, scaling| Kind {
        bias,
        qk_norm,
        scaling,
    };
    [
        kind(false, false, RopeScaling::None),
        kind(true, false, RopeScaling::Linear { factor: 4.0 }),
        kind(false, true, RopeScaling::Divisors(vec![1.5; HEAD_DIM / 2])),
    ]
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn linear(input: usize, out: usize, bias: bool) -> Linear {
    let scale = 2.0 / (input as f64).sqrt();
    Linear {
        weight: Param::from_tensor((random([out, input]) * scale).transpose()),
        bias: bias.then(|| Param::from_tensor(random([out]))),
    }
}

fn rms_norm(width: usize) -> RmsNorm {
    let mut norm = RmsNormConfig::new(width)
        .with_epsilon(1e-3)
        .init(&Device::flex());
    norm.gamma = Param::from_tensor(random([width]) + 1.5);
    norm
}

fn layer(kind: &Kind) -> DecoderLayer {
    let dense = |input, out| Projection::Dense(linear(input, out, kind.bias));
    let (all, shared) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let per_head = || kind.qk_norm.then(|| rms_norm(HEAD_DIM));
    DecoderLayer {
        input_norm: rms_norm(WIDTH),
        attention: Attention {
            qkv: ProjectionGroup::new(vec![
                dense(WIDTH, all),
                dense(WIDTH, shared),
                dense(WIDTH, shared),
            ]),
            latent: None,
            output: dense(all, WIDTH),
            q_norm: per_head(),
            k_norm: per_head(),
            head_dim: HEAD_DIM,
            cache_format: CacheFormat::F32,
            residual_window: 0,
        },
        post_attention_norm: rms_norm(WIDTH),
        feed_forward: FeedForward {
            gate_up: ProjectionGroup::new(vec![dense(WIDTH, NEURONS), dense(WIDTH, NEURONS)]),
            down: dense(NEURONS, WIDTH),
        },
    }
}

fn rotary(kind: &Kind) -> Rotary {
    Rotary::new(&ModelConfig {
        family: &FAMILIES[0],
        hidden_size: WIDTH,
        layers: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        intermediate_size: NEURONS,
        vocab_size: 8,
        max_context: 512,
        rms_norm_eps: 1e-3,
        rope_theta: 100.0,
        rope_scaling: kind.scaling.clone(),
        tied_embeddings: true,
        qkv_bias: kind.bias,
        output_bias: kind.bias,
        feed_forward_bias: kind.bias,
        qk_norm: kind.qk_norm,
        source: serde_json::Map::new(),
    })
}

fn close<const D: usize>(what: &str, ours: Tensor<D>, reference: Tensor<D>) {
    let read = |x: Tensor<D>| x.into_data().iter::<f32>().collect::<Vec<f32>>();
    assert_eq!(ours.dims(), reference.dims(), "{what}");
    let (ours, reference) = (read(ours), read(reference));
    let largest = reference.iter().fold(0f32, |top, x| top.max(x.abs()));
    let apart = ours
        .iter()
        .zip(&reference)
        .fold(0f32, |top, (a, b)| top.max((a - b).abs()));
    assert!(largest > 1e-3, "{what}: nothing to compare");
    assert!(
        apart <= 1e-4 * largest,
        "{what}: {apart} apart of {largest}"
    );
}

/// The layer's forward pass under autodiff, with a zero added to every projection's output: its gradient is that of the
/// output. Returns the layer's output and the zeros, in the order of [`Site::ALL`].
fn probed(
    layer: &DecoderLayer,
    input: Tensor<3>,
    rotary: &RotaryTable,
    device: &Device,
) -> (Tensor<3>, Vec<Tensor<2>>) {
    let [batch, tokens, hidden] = input.dims();
    let rows = batch * tokens;
    let mut probes = Vec::new();
    let mut apply = |projection: &Projection, x: Tensor<2>| {
        let probe = Tensor::<2>::zeros([rows, projection.shape().0], device).require_grad();
        probes.push(probe.clone());
        projection.forward(x) + probe
    };
    let attention = &layer.attention;
    let flat = input.reshape([rows, hidden]);
    let normed = norm(&layer.input_norm, flat.clone());
    let [q, k, v] = [0, 1, 2].map(|i| {
        let x = apply(&attention.qkv.members[i], normed.clone());
        let count = x.dims()[1] / HEAD_DIM;
        x.reshape([batch, tokens, count, HEAD_DIM])
    });
    let turned = |x: Tensor<4>, per_head: &Option<RmsNorm>| match per_head {
        Some(per_head) => rotary.rotate(norm(per_head, x)),
        None => rotary.rotate(x),
    };
    let (q, k) = (turned(q, &attention.q_norm), turned(k, &attention.k_norm));
    let mixed = ops::attention(q, k.swap_dims(1, 2), v.swap_dims(1, 2), tokens, None);
    let mixed = mixed.reshape([rows as i32, -1]);
    let middle = apply(&attention.output, mixed) + flat;
    let normed = norm(&layer.post_attention_norm, middle.clone());
    let [gate, up] = [0, 1].map(|i| apply(&layer.feed_forward.gate_up.members[i], normed.clone()));
    let output = apply(&layer.feed_forward.down, ops::swiglu(gate, up)) + middle;
    (output.reshape([batch, tokens, hidden]), probes)
}

#[test]
fn every_gradient_of_a_layer_is_autodiffs() {
    let differentiable = Device::flex().autodiff();
    for kind in kinds() {
        for (batch, tokens) in [(1, 1), (2, 9), (1, 150)] {
            let layer = layer(&kind);
            let rotary = rotary(&kind);
            let (input, gradient) = (
                random([batch, tokens, WIDTH]),
                random([batch, tokens, WIDTH]),
            );

            let on = |x: &Tensor<3>| Tensor::<3>::from_data(x.to_data(), &differentiable);
            let reference_input = on(&input).require_grad();
            let (output, probes) = probed(
                &layer.clone().fork(&differentiable),
                reference_input.clone(),
                &rotary.table(0, tokens, &differentiable),
                &differentiable,
            );
            let table = rotary.table(0, tokens, &Device::flex());
            let expected = layer.forward(input.clone(), &table, None, &mut |_, _| {});
            close("the output", expected, output.clone().inner());
            let gradients = (output * on(&gradient)).sum().backward();

            let mut read = Vec::new();
            let mut forward = |site, x: &Tensor<2>| read.push((site, x.clone()));
            layer.forward(input.clone(), &table, None, &mut forward);
            let mut seen = Vec::new();
            let back = BackwardLayer::new(&layer).expect("dense").backward(
                input,
                gradient,
                &table,
                &mut |site, member, x, g| {
                    let (_, forward) = read.iter().find(|r| r.0 == site).expect("a site");
                    close("what was read", x.clone(), forward.clone());
                    seen.push((site, member, g.clone()));
                },
            );
            let of = |probe: &Tensor<2>| probe.grad(&gradients).expect("a gradient");
            let mut probes = probes.iter();
            for site in Site::ALL {
                for (member, name) in site.projections().iter().enumerate() {
                    let ours = seen.iter().find(|s| (s.0, s.1) == (site, member));
                    let reference = of(probes.next().expect("seven"));
                    // One key has nothing to choose from: its queries and keys get no gradient.
                    if tokens > 1 || !["q", "k"].contains(name) {
                        close(name, ours.expect("seen").2.clone(), reference);
                    }
                }
            }
            assert_eq!(seen.len(), 7);
            close(
                "the input",
                back,
                reference_input.grad(&gradients).expect("a gradient"),
            );
        }
    }
}

fn head(vocab: usize, tied: bool) -> (BackwardHead, RmsNorm, Linear) {
    let norm = rms_norm(WIDTH);
    let linear = linear(WIDTH, vocab, !tied);
    let mut table = EmbeddingConfig::new(vocab, WIDTH).init(&Device::flex());
    let lm_head = Projection::Dense(linear.clone());
    if tied {
        table.weight = Param::from_tensor(linear.weight.val().transpose());
    }
    let head = BackwardHead::new(
        &norm,
        &TokenEmbedding::Float(table),
        (!tied).then_some(&lm_head),
    );
    (head.expect("dense"), norm, linear)
}

#[test]
fn the_loss_and_its_gradient_are_autodiffs() {
    let differentiable = Device::flex().autodiff();
    for (tied, tokens, vocab) in [(true, 2, 50), (false, 300, 1100)] {
        let (head, norm, linear) = head(vocab, tied);
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 % vocab) as u32).collect();
        let hidden = random([1, tokens, WIDTH]);
        let (loss, gradient) = head
            .loss_and_gradient(hidden.clone(), &ids, Labels::Text)
            .expect("a loss");

        let reference = Tensor::<3>::from_data(hidden.to_data(), &differentiable).require_grad();
        let normed = super::norm(&norm.fork(&differentiable), reference.clone());
        let logits = crate::projection::linear_forward(&linear.fork(&differentiable), normed);
        let labels: Vec<i32> = ids[1..].iter().map(|id| *id as i32).collect();
        let labels = TensorData::new(labels, [tokens - 1, 1]);
        let labels = Tensor::<2, Int>::from_data(labels, &differentiable);
        let logs = log_softmax(logits.reshape([tokens, vocab]).narrow(0, 0, tokens - 1), 1);
        let total = logs.gather(1, labels).sum().neg();
        let expected = f64::from(total.clone().into_scalar::<f32>());
        assert!(
            (loss - expected).abs() < 1e-5 * expected,
            "{loss} for {expected}"
        );
        let gradients = total.backward();
        close(
            "hidden",
            gradient,
            reference.grad(&gradients).expect("a gradient"),
        );
    }
}

#[test]
fn sampled_labels_depend_on_seed_window_and_position_and_their_gradients_cancel() {
    let (vocab, tokens) = (30, 9);
    let (head, ..) = head(vocab, true);
    let ids = vec![3u32; tokens];
    let hidden = random([1, tokens, WIDTH]);
    let go = |tokens: usize, seed, window| {
        let hidden = hidden.clone().slice([0..1, 0..tokens]);
        let (loss, gradient) = head
            .loss_and_gradient(hidden, &ids[..tokens], Labels::Sampled { seed, window })
            .expect("a loss");
        let gradient: Vec<f32> = gradient.into_data().iter::<f32>().collect();
        (loss, gradient)
    };
    assert_eq!(go(tokens, 1, 7), go(tokens, 1, 7));
    assert_ne!(go(tokens, 1, 7), go(tokens, 1, 8));
    assert_ne!(go(tokens, 1, 7), go(tokens, 2, 7));
    // A shorter window has the same labels as far as it goes.
    let (short, long) = (go(5, 1, 7).1, go(tokens, 1, 7).1);
    assert_eq!(short[..4 * WIDTH], long[..4 * WIDTH]);

    let draws = 4000;
    let mut sum = vec![0.0f64; tokens * WIDTH];
    let mut squares = sum.clone();
    for window in 0..draws {
        for (i, g) in go(tokens, 5, window).1.into_iter().enumerate() {
            sum[i] += f64::from(g);
            squares[i] += f64::from(g).powi(2);
        }
    }
    let n = draws as f64;
    for (i, (sum, square)) in sum.into_iter().zip(squares).enumerate() {
        let error = (square / n).sqrt() / n.sqrt();
        assert!(sum.abs() / n <= 5.0 * error, "{i}: {} of {error}", sum / n);
    }
}

#[test]
fn what_can_not_be_gone_back_through_is_refused() {
    let kind = &kinds()[0];
    let mut low = layer(kind);
    let dense = low.feed_forward.down.to_dense();
    low.feed_forward.down = Projection::Dense(Linear {
        weight: Param::from_tensor(dense.weight.val().cast(DType::F16)),
        bias: None,
    });
    assert!(matches!(BackwardLayer::new(&low), Err(Error::Request(_))));
    let mut few = layer(kind);
    few.attention.qkv.members.pop();
    assert!(matches!(BackwardLayer::new(&few), Err(Error::Request(_))));

    let (head, ..) = head(20, true);
    let hidden = random([1, 3, WIDTH]);
    for ids in [&[1, 2][..], &[1, 2, 20], &[]] {
        let outcome = head.loss_and_gradient(hidden.clone(), ids, Labels::Text);
        assert!(matches!(outcome, Err(Error::Request(_))));
    }
    let outcome = head.loss_and_gradient(hidden * f32::NAN, &[1, 2, 3], Labels::Text);
    assert!(matches!(outcome, Err(Error::NonFinite { .. })));
}
